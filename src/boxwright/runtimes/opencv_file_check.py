"""Whether the numbers in a file of OpenCV fit each other: it follows many unchecked, to the end of the process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# A node of a tree: two children and a feature, then a threshold, or a bit for each category.
_NODE_HEAD = 3
_LBP_CATEGORIES = 256
_MOST_HOG_PIXELS, _MOST_HOG_BINS = 4096, 360


def find_cascade_fault(cascade: Any) -> str | None:
    """What is wrong with a cascade, in words; None where nothing is.

    Args:
        cascade: the `cv2.FileNode` of a cascade, in OpenCV's format of today or in that of OpenCV 1.
    """
    if not cascade.getNode("featureType").isString():
        return next(_old_faults(cascade), None)
    feature_type = cascade.getNode("featureType").string()
    num_categories = cascade.getNode("featureParams").getNode("maxCatCount").real()
    if feature_type not in ("HAAR", "LBP"):
        return f"features of the type {feature_type!r}"
    if num_categories != (_LBP_CATEGORIES if feature_type == "LBP" else 0):
        return f"{feature_type} features of {num_categories:g} categories"
    node_step = _NODE_HEAD + (int(num_categories) // 32 or 1)
    features = cascade.getNode("features")
    for tree in _trees(cascade.getNode("stages")):
        fault = _tree_fault(tree, node_step, features.size())
        if fault is not None:
            return fault
    size_wh = cascade.getNode("width").real(), cascade.getNode("height").real()
    faults = _lbp_fault if feature_type == "LBP" else _haar_fault
    return next((fault for feature in _entries(features) if (fault := faults(feature, size_wh))), None)


def find_hog_fault(detector: Any) -> str | None:
    """What is wrong with the layout of a HOG detector, in words; None where nothing is.

    Args:
        detector: its `cv2.FileNode`.
    """
    names = ("winSize", "blockSize", "blockStride", "cellSize")
    layout = {name: _numbers(detector.getNode(name), 2) for name in names}
    for name, pair in layout.items():
        if not all(1 <= side <= _MOST_HOG_PIXELS and side == int(side) for side in pair):
            return f"a {name} of {pair[0]:g}x{pair[1]:g}"
    for window, block, stride, cell in zip(*layout.values(), strict=True):
        if block > window or (window - block) % stride or block % cell:
            return f"windows of {window:g} pixels with blocks of {block:g}, {stride:g} apart, and cells of {cell:g}"
    num_bins = detector.getNode("nbins").real()
    return None if 1 <= num_bins <= _MOST_HOG_BINS else f"{num_bins:g} bins"


def _trees(stages: Any) -> Iterator[Any]:
    for stage in _entries(stages):
        yield from _entries(stage.getNode("weakClassifiers"))


def _tree_fault(tree: Any, node_step: int, num_features: int) -> str | None:
    nodes, num_leaves = tree.getNode("internalNodes"), tree.getNode("leafValues").size()
    num_nodes, rest = divmod(nodes.size(), node_step)
    if rest or num_nodes == 0 or num_leaves != num_nodes + 1:
        return f"a tree of {nodes.size()} numbers and {num_leaves} leaves"
    for index in range(num_nodes):
        left, right, feature = (nodes.at(index * node_step + place).real() for place in range(_NODE_HEAD))
        if not (0 <= feature < num_features and feature.is_integer()):
            return f"the feature {feature:.10g} of {num_features}"
        for child in (left, right):
            # Above zero it is a node, else a leaf; one that went back would never end.
            is_there = index < child < num_nodes or -num_leaves < child <= 0
            if not (is_there and child.is_integer()):
                return f"the child {child:.10g} in a tree of {num_nodes} nodes"
    return None


def _old_faults(cascade: Any) -> Iterator[str]:
    """OpenCV 1 kept each feature in its node, and the size and the trees under other names."""
    size_wh = _numbers(cascade.getNode("size"), 2)
    for stage in _entries(cascade.getNode("stages")):
        for tree in _entries(stage.getNode("trees")):
            for index, node in enumerate(_entries(tree)):
                fault = _haar_fault(node.getNode("feature"), (size_wh[0], size_wh[1]))
                if fault is not None:
                    yield fault
                for name in ("left_node", "right_node"):
                    child = node.getNode(name)
                    if not child.empty() and not index < child.real() < tree.size():
                        yield f"the child {child.real():.10g} in a tree of {tree.size()} nodes"


def _lbp_fault(feature: Any, size_wh: tuple[float, float]) -> str | None:
    x, y, w, h = _numbers(feature.getNode("rect"), 4)
    is_inside = x >= 0 and y >= 0 and w > 0 and h > 0 and x + 3 * w <= size_wh[0] and y + 3 * h <= size_wh[1]
    return None if is_inside else _outside((x, y, w, h), size_wh)


def _haar_fault(feature: Any, size_wh: tuple[float, float]) -> str | None:
    is_tilted = feature.getNode("tilted").real() != 0
    for entry in _entries(feature.getNode("rects")):
        x, y, w, h = _numbers(entry, 4)
        # A tilted rectangle goes from its top corner down to the right by w and to the left by h.
        left, right, bottom = (x - h, x + w, y + w + h) if is_tilted else (x, x + w, y + h)
        if not (left >= 0 and y >= 0 and w > 0 and h > 0 and right <= size_wh[0] and bottom <= size_wh[1]):
            return _outside((x, y, w, h), size_wh)
    return None


def _outside(rectangle: tuple[float, ...], size_wh: tuple[float, float]) -> str:
    place = " ".join(f"{number:g}" for number in rectangle)
    return f"a feature at {place} in a window of {size_wh[0]:g}x{size_wh[1]:g}"


def _entries(node: Any) -> Iterator[Any]:
    return (node.at(index) for index in range(node.size())) if node.isSeq() else iter(())


def _numbers(node: Any, count: int) -> tuple[float, ...]:
    """The first numbers of a sequence; NaN, which fits nowhere, where there are fewer."""
    if not node.isSeq():
        return (float("nan"),) * count
    return tuple(node.at(index).real() if index < node.size() else float("nan") for index in range(count))
