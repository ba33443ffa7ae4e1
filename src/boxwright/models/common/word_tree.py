"""YOLO9000's WordTree: classes as the nodes of a tree, with a softmax over the children of each node.

The network predicts the probability of a class given its parent. The probability of a class is the product of those on
the path from the root; what is detected is the class that one reaches when one descends to the most probable child as
long as the probability on the way stays above a threshold.

Source: Redmon and Farhadi, YOLO9000, CVPR 2017, sec. 4; the `.tree` files of its release.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from boxwright.core.errors import CheckpointError

NO_PARENT = -1
# As in the authors' release: a child is taken while the path to it is more probable than not.
DESCENT_THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True)
class WordTree:
    """The classes and their parents.

    Attributes:
        names: of the nodes, in the order of the class ids.
        parents: index of each node's parent, -1 where it has none; always a node before it.
        groups: the nodes that share a parent, by ascending index; each group is a run of indices.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]

    def path(self, node: int) -> tuple[int, ...]:
        """A node and its ancestors, the node first."""
        nodes = [node]
        while self.parents[nodes[-1]] != NO_PARENT:
            nodes.append(self.parents[nodes[-1]])
        return tuple(nodes)


def parse_tree(text: str, source: str) -> WordTree:
    """Read a `.tree` file: a line a node with its name and the number of its parent's line, from 0, or -1.

    Args:
        text: of the file.
        source: its name, for messages.

    Raises:
        CheckpointError: where a line is anything else, a name comes twice, a parent does not come before its child, or
            the children of a node do not follow each other.
    """
    names: list[str] = []
    parents: list[int] = []
    groups: list[list[int]] = []
    ended: set[int] = set()
    seen: set[str] = set()
    for number, line in enumerate((line for line in text.splitlines() if line.strip()), start=1):
        parts = line.split()
        if len(parts) != 2 or not parts[1].removeprefix("-").isdigit():
            raise _error(source, number, "a name and the number of its parent", repr(line[:60]))
        node, parent = len(names), int(parts[1])
        if not NO_PARENT <= parent < node:
            raise _error(source, number, f"a parent before this node ({NO_PARENT} to {node - 1})", str(parent))
        if not parents or parent != parents[-1]:
            if parent in ended:
                raise _error(source, number, "the children of a node one after the other", f"one more of {parent}")
            ended.add(parent)
            groups.append([])
        if parts[0] in seen:
            raise _error(source, number, "names that differ", f"{parts[0]!r} twice")
        groups[-1].append(node)
        seen.add(parts[0])
        names.append(parts[0])
        parents.append(parent)
    if not names:
        raise _error(source, 1, "a name and the number of its parent", "an empty file")
    return WordTree(names=tuple(names), parents=tuple(parents), groups=tuple(map(tuple, groups)))


def flat_tree(num_classes: int) -> str:
    """The text of a tree without any hierarchy: one softmax over all classes."""
    return "".join(f"class{index} {NO_PARENT}\n" for index in range(num_classes))


def _error(source: str, line: int, expected: str, got: str) -> CheckpointError:
    return CheckpointError(f"{source}:{line}", expected=expected, got=got, fix="correct the .tree")


class Hierarchy(nn.Module):
    """Logits of a WordTree to class scores, in operators that every engine has.

    The scores of an anchor are 0 but for the class that is reached, whose score is its probability. The root's most
    probable child is reached whatever its probability.

    Args:
        tree: of the classes.
        threshold: of the descent.
    """

    order: Tensor  # (C,) nodes by groups of one size
    restore: Tensor  # (C,) the inverse of that
    group_below: Tensor  # (C,) place of each node's children among the groups
    by_level: Tensor  # (C,) the inverse of the nodes by depth

    def __init__(self, tree: WordTree, threshold: float = DESCENT_THRESHOLD) -> None:
        super().__init__()
        self.threshold = threshold
        # Groups of one size are one softmax, so that there are as many as sizes and not as nodes.
        by_size: dict[int, list[tuple[int, ...]]] = {}
        for group in tree.groups:
            by_size.setdefault(len(group), []).append(group)
        self.shapes = [(len(groups), size) for size, groups in by_size.items()]
        grouped = [group for groups in by_size.values() for group in groups]
        order = [node for group in grouped for node in group]
        place_of_parent = {tree.parents[group[0]]: place for place, group in enumerate(grouped)}
        self._index("order", order)
        self._index("restore", _inverse(order))
        # For each node the place of its children among the groups; leaves read the place after the last.
        self._index("group_below", [place_of_parent.get(node, len(grouped)) for node in range(len(tree.names))])
        depths = [len(tree.path(node)) - 1 for node in range(len(tree.names))]
        levels = [[node for node, depth in enumerate(depths) if depth == wanted] for wanted in range(max(depths) + 1)]
        self.num_levels = len(levels)
        for depth, nodes in enumerate(levels):
            self._index(f"nodes_{depth}", nodes)
            if depth > 0:
                above = {node: place for place, node in enumerate(levels[depth - 1])}
                self._index(f"parents_{depth}", [above[tree.parents[node]] for node in nodes])
        self._index("by_level", _inverse([node for nodes in levels for node in nodes]))

    def _index(self, name: str, values: list[int]) -> None:
        self.register_buffer(name, torch.tensor(values, dtype=torch.int64), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Class scores (B, N, C) of logits (B, N, C)."""
        conditional, is_best = self._within_groups(logits)
        probability, is_chosen = self._down_the_paths(conditional, is_best)
        has_chosen_child = self._any_of_group(is_chosen)[..., self.group_below]  # (B, N, C)
        return probability * is_chosen * (1 - has_chosen_child)

    def _groups(self, values: Tensor) -> list[Tensor]:
        """Values (B, N, C) as (B, N, groups, size) for each size of groups."""
        parts = torch.split(values[..., self.order], [groups * size for groups, size in self.shapes], dim=-1)
        return [
            part.reshape(*part.shape[:-1], groups, size)
            for part, (groups, size) in zip(parts, self.shapes, strict=True)
        ]

    def _within_groups(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax within the groups, and 1.0 for the best node of each (the first at a tie), (B, N, C) both."""
        probabilities, best = [], []
        for group in self._groups(logits):
            softmax = group.softmax(dim=-1)
            places = torch.arange(group.shape[-1], device=group.device)
            probabilities.append(softmax.flatten(-2))
            best.append((places == softmax.argmax(dim=-1, keepdim=True)).to(group.dtype).flatten(-2))
        return torch.cat(probabilities, dim=-1)[..., self.restore], torch.cat(best, dim=-1)[..., self.restore]

    def _down_the_paths(self, conditional: Tensor, is_best: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of the nodes, and 1.0 for those that the descent goes through, (B, N, C) both."""
        probabilities: list[Tensor] = []
        chosen: list[Tensor] = []
        for depth in range(self.num_levels):
            nodes = getattr(self, f"nodes_{depth}")
            probability, is_chosen = conditional[..., nodes], is_best[..., nodes]
            if depth > 0:
                parents = getattr(self, f"parents_{depth}")
                probability = probability * probabilities[-1][..., parents]
                is_chosen = is_chosen * chosen[-1][..., parents] * (probability > self.threshold).to(probability.dtype)
            probabilities.append(probability)
            chosen.append(is_chosen)
        return torch.cat(probabilities, dim=-1)[..., self.by_level], torch.cat(chosen, dim=-1)[..., self.by_level]

    def _any_of_group(self, flags: Tensor) -> Tensor:
        """1.0 for groups with a flagged node, and a 0.0 after the last, (B, N, groups + 1)."""
        any_flag = [group.amax(dim=-1) for group in self._groups(flags)]
        return torch.cat([*any_flag, torch.zeros_like(any_flag[0][..., :1])], dim=-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The probability of every class, (B, N, C)."""
        return self._down_the_paths(*self._within_groups(logits))[0]


def _inverse(order: list[int]) -> list[int]:
    places = [0] * len(order)
    for place, value in enumerate(order):
        places[value] = place
    return places


def tree_cross_entropy(logits: Tensor, class_ids: Tensor, tree: WordTree, *, label_smoothing: float = 0.0) -> Tensor:
    """The sum of the cross entropies on the path to each object's class.

    Args:
        logits: (P, C).
        class_ids: (P,); a node within the tree teaches nothing below it.
        tree: of the classes.
        label_smoothing: of each softmax.

    Returns:
        (P,).
    """
    group_of = {node: group for group in tree.groups for node in group}
    losses = []
    for row, class_id in zip(logits, class_ids.tolist(), strict=True):
        terms = []
        for node in tree.path(class_id):
            group = group_of[node]
            wanted = torch.tensor(node - group[0], device=logits.device)
            members = row[group[0] : group[-1] + 1]
            terms.append(functional.cross_entropy(members, wanted, label_smoothing=label_smoothing))
        losses.append(torch.stack(terms).sum())
    return torch.stack(losses) if losses else logits.sum(dim=1)
