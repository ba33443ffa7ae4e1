"""The backbone of a detector: its layers from the input up, freezing it, and letting it learn more slowly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from boxwright.core.errors import InputError
from boxwright.models import DetectionModel

BACKBONE = "backbone"
_MOST_NAMED = 12


@dataclass(frozen=True, kw_only=True)
class BackboneLayer:
    """A stage or block of the backbone.

    Attributes:
        names: of its modules, in the order of the computation; normalisations beside the convolution that they follow.
    """

    names: tuple[str, ...]

    def holds(self, parameter_name: str) -> bool:
        """Whether a parameter belongs to it."""
        return any(parameter_name.startswith(f"{name}.") for name in self.names)


def backbone_layers(module: DetectionModel, *, needed_for: str) -> tuple[BackboneLayer, ...]:
    """The layers of the backbone, those nearest to the image first.

    A layer is a submodule that the family names, or, where it names one alone, a child of that, or an element where the
    child is a list of stages or a plain sequence of single layers; a sequence of blocks is divided before each block
    that halves the map. What holds no convolution or linear layer belongs to the layer before it.

    Args:
        module: the detector.
        needed_for: the option, named in the error.

    Raises:
        InputError: where the family does not say what its backbone is.
    """
    if not module.backbone_prefixes:
        raise InputError(
            needed_for,
            expected="a family that says which of its layers are the backbone",
            got=module.variant,
            fix="leave the option out, or name parameters with --freeze",
        )
    prefixes = module.backbone_prefixes
    # Several submodules that are the backbone together are its layers.
    stages = (
        ((prefix,) for prefix in prefixes)
        if len(prefixes) > 1
        else _elements(prefixes[0], module.get_submodule(prefixes[0]))
    )
    layers: list[tuple[str, ...]] = []
    for names in stages:
        parts = [module.get_submodule(name) for name in names]
        if not any(True for part in parts for _ in part.parameters()):
            continue
        is_normalisation = not any(_is_learner(layer) for part in parts for layer in part.modules())
        if is_normalisation and layers:
            layers[-1] += names
        else:
            layers.append(names)
    return tuple(BackboneLayer(names=names) for names in layers)


def _is_learner(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Conv2d, nn.Linear))


def _elements(prefix: str, part: nn.Module) -> Iterator[tuple[str, ...]]:
    for name, child in part.named_children():
        if _is_list_of_layers(child):
            yield from _elements(f"{prefix}.{name}", child)
        else:
            yield from _stages(f"{prefix}.{name}", child)


def _stages(name: str, part: nn.Module) -> Iterator[tuple[str, ...]]:
    """A part as a whole, or its blocks in stages where it is a sequence in which a later one halves the map."""
    blocks = list(part.named_children()) if isinstance(part, nn.Sequential) else []
    starts = [place for place, (_, block) in enumerate(blocks) if place > 0 and _halves(block)]
    if not starts:
        yield (name,)
        return
    for start, end in zip([0, *starts], [*starts, len(blocks)], strict=True):
        yield tuple(f"{name}.{block}" for block, _ in blocks[start:end])


def _halves(block: nn.Module) -> bool:
    return any(isinstance(layer, nn.Conv2d) and max(layer.stride) > 1 for layer in block.modules())


def _is_list_of_layers(part: nn.Module) -> bool:
    """Whether a module only holds others: stages, or single layers one after another."""
    if isinstance(part, nn.ModuleList):
        return True
    if not isinstance(part, nn.Sequential):
        return False
    children = list(part.children())
    are_stages = all(isinstance(child, nn.Sequential) for child in children)
    return are_stages or not any(any(True for _ in child.children()) for child in children)


def find_frozen(module: DetectionModel, freeze: Sequence[str]) -> tuple[str, ...]:
    """The names of the parameters that `--freeze` takes out of learning.

    Args:
        module: the detector.
        freeze: "backbone", or beginnings of names.

    Raises:
        InputError: where one of them matches nothing, or nothing would be left to learn.
    """
    names = [name for name, _ in module.named_parameters()]
    frozen: dict[str, None] = {}
    for entry in freeze:
        if entry == BACKBONE and module.backbone_prefixes:
            beginnings = tuple(f"{prefix}." for prefix in module.backbone_prefixes)
        elif entry == BACKBONE:
            beginnings = ()
        else:
            beginnings = (entry if entry.endswith(".") else f"{entry}.",)
        matching = [name for name in names if beginnings and (name.startswith(beginnings) or name == entry)]
        if not matching:
            raise InputError(
                f"--freeze {entry}",
                expected="'backbone' of a family that knows its own, or the beginning of a parameter's name: "
                + ", ".join(_beginnings(names)),
                got=f"no parameter of {module.variant}",
                fix="pass one of these, or a longer one",
            )
        frozen.update(dict.fromkeys(matching))
    if len(frozen) == len(names):
        raise InputError("--freeze", expected="parameters left to learn", got="all frozen", fix="freeze fewer")
    return tuple(frozen)


def _beginnings(names: Sequence[str]) -> list[str]:
    first = list(dict.fromkeys(name.partition(".")[0] for name in names))
    second = list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))
    return (second if len(first) == 1 else first)[:_MOST_NAMED]


def freeze_parameters(module: nn.Module, frozen: Sequence[str]) -> None:
    """Take parameters out of learning."""
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)


def keep_frozen_statistics(module: nn.Module) -> None:
    """Put frozen normalisation layers into evaluation mode, or their statistics would follow the new images.

    To be called again whenever the module was put into training mode.
    """
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._NormBase):
            parameters = list(layer.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                layer.eval()


def parameter_groups(
    module: DetectionModel, *, weight_decay: float, layer_decay: float
) -> list[tuple[float, dict[str, Any]]]:
    """The groups of the optimizer, each with the factor of its learning rate, the head's first.

    Weights decay; biases and normalisation do not. The layer of the backbone nearest to the head learns at
    `layer_decay` of the head's rate, the one below it at its square, and so on.

    Source: Howard and Ruder, ULMFiT, ACL 2018, sec. 3.2; as a geometric rule Clark et al., ELECTRA, ICLR 2020, app. A.
    """
    factors = {name: 1.0 for name, parameter in module.named_parameters() if parameter.requires_grad}
    if layer_decay != 1:
        layers = backbone_layers(module, needed_for="--layer-decay")
        for depth, layer in enumerate(reversed(layers), start=1):
            factors.update({name: layer_decay**depth for name in factors if layer.holds(name)})
        # What the backbone holds outside of its layers (a position embedding, say) belongs to the first of them.
        own = tuple(f"{prefix}." for prefix in module.backbone_prefixes)
        outside = (name for name in factors if name.startswith(own) and factors[name] == 1)
        factors.update(dict.fromkeys(outside, layer_decay ** len(layers)))
    groups = []
    for factor in sorted(set(factors.values()), reverse=True):
        parameters = [module.get_parameter(name) for name, own_factor in factors.items() if own_factor == factor]
        decayed = [parameter for parameter in parameters if parameter.ndim > 1]
        plain = [parameter for parameter in parameters if parameter.ndim <= 1]
        groups.append((factor, {"params": decayed, "weight_decay": weight_decay}))
        groups.append((factor, {"params": plain, "weight_decay": 0.0}))
    return groups
