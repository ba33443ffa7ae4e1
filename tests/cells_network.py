"""What networks on the colour cells of `models_for_tests` have in common: flat heads, inputs and a manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from boxwright.core.manifest import METADATA_KEY
from models_for_tests import CLASS_NAMES, HEIGHT, NUM_CELLS, WIDTH, colour_cells_manifest

HEADS = {"class_logits": len(CLASS_NAMES), "box_regression": 4}


def cells_network(
    nodes: Sequence[onnx.NodeProto],
    arrays: Mapping[str, NDArray[np.float64]],
    *,
    last: str,
    predictions: Mapping[str, str],
) -> onnx.ModelProto:
    """The whole model, up to raw heads.

    Args:
        nodes: from the input `images` on.
        arrays: their constants, and `<layer>.weight`, and `.bias` if there is one, of the layers that predict.
        last: the tensor that these read.
        predictions: their names, by the head that each gives.
    """
    constants: dict[str, NDArray[np.generic]] = {name: array.astype(np.float32) for name, array in arrays.items()}
    nodes = list(nodes)
    for head, layer in predictions.items():
        constants[f"{layer}.shape"] = np.array([0, HEADS[head], NUM_CELLS], np.int64)
        inputs = [last, *(name for name in (f"{layer}.weight", f"{layer}.bias") if name in constants)]
        nodes += [
            helper.make_node("Conv", inputs, [f"{layer}_map"], layer),
            helper.make_node("Reshape", [f"{layer}_map", f"{layer}.shape"], [f"{layer}_flat"]),
            helper.make_node("Transpose", [f"{layer}_flat"], [head], perm=[0, 2, 1]),
        ]
    graph = helper.make_graph(
        nodes,
        "cells_network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, HEIGHT, WIDTH])],
        [
            helper.make_tensor_value_info(head, TensorProto.FLOAT, [1, NUM_CELLS, HEADS[head]])
            for head in ("box_regression", "class_logits")
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {METADATA_KEY: colour_cells_manifest("raw").to_json()})
    onnx.checker.check_model(model)
    return model
