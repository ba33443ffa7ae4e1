"""A network of convolutions that sees what the colour cells model of `models_for_tests` sees: one to quantize.

Layers: `stem` (dense, 8x8 stride 8, with ReLU), `mix` (depthwise), `blend` (dense, 1x1) and the predictions `classes`
and `boxes`. Its channels differ in magnitude, as those of trained networks do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from cells_network import cells_network
from models_for_tests import CLASS_NAMES, LOGIT_SCALE, STRIDE

_CHANNELS = 12
QUANTIZABLE = ("stem", "mix", "blend")


def colour_network(*, poison: float | None = None) -> onnx.ModelProto:
    """The model, up to raw heads.

    Args:
        poison: put into a weight of `blend`, such as NaN.
    """
    random = np.random.default_rng(3)
    magnitudes = np.geomspace(0.3, 3.0, _CHANNELS)
    mean = np.full((STRIDE, STRIDE), 1 / STRIDE**2)
    stem = np.einsum("oc,hw->ochw", np.tile(np.eye(3), (_CHANNELS // 3, 1)) * magnitudes[:, None], mean)
    rotation = np.linalg.qr(random.normal(size=(_CHANNELS, _CHANNELS)))[0]
    # Back through the rotation to the mean of each colour.
    colours = np.tile(np.eye(3), (1, _CHANNELS // 3)) / magnitudes[None] / (_CHANNELS // 3)
    classes = LOGIT_SCALE * colours @ rotation.T
    if poison is not None:
        rotation[0, 0] = poison
    depthwise = np.zeros((_CHANNELS, 1, 3, 3))
    depthwise[:, 0, 1, 1] = 1
    arrays = {
        "stem.weight": stem,
        "stem.bias": np.zeros(_CHANNELS),
        "mix.weight": depthwise,
        "blend.weight": rotation[:, :, None, None],
        "classes.weight": classes[:, :, None, None],
        "classes.bias": np.full(len(CLASS_NAMES), -LOGIT_SCALE / 2),
        "boxes.weight": random.normal(0, 1e-3, (4, _CHANNELS, 1, 1)),
        "boxes.bias": np.array([0.5, 0.5, np.log(2), np.log(2)]),
    }
    nodes = [
        helper.make_node("Conv", ["images", "stem.weight", "stem.bias"], ["s"], "stem", strides=[STRIDE] * 2),
        helper.make_node("Relu", ["s"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "mix.weight"], ["m"], "mix", pads=[1] * 4, group=_CHANNELS),
        helper.make_node("Conv", ["m", "blend.weight"], ["b"], "blend"),
    ]
    predictions = {"class_logits": "classes", "box_regression": "boxes"}
    return cells_network(nodes, arrays, last="b", predictions=predictions)


def save_colour_network(path: Path, *, poison: float | None = None) -> Path:
    """Write the model as an ONNX file."""
    onnx.save(colour_network(poison=poison), path)
    return path
