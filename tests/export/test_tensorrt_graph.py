"""Graphs in the words of old ONNX parsers: other nodes, the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from boxwright.core.errors import UnsupportedError
from boxwright.export.decode_nms.insert import insert_decode_nms
from boxwright.export.known_sizes import fold_known_sizes
from boxwright.export.tensorrt_graph import for_parser, has_decode_nms
from boxwright.export.tensorrt_limits import limits_of
from models_for_tests import HEIGHT, WIDTH, colour_cells_manifest, colour_cells_onnx
from tensorrt_operators import complaints

SHAPE = (2, 4, 6, 5)


def graph_of(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], opset: int, *, dtype: int = TensorProto.FLOAT
) -> ir.Model:
    """From `images` to `y`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", dtype, SHAPE)],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def run(model: ir.Model, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    result: np.ndarray = session.run(None, {"images": images})[0]
    return result


def node(op_type: str, inputs: str, output: str = "y", **attributes: Any) -> onnx.NodeProto:
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op_type, names, output.split(), name=f"{output.split()[0]}_node", **attributes)


AXES = {"axes": np.array([1, 3])}
OF_OPSET_18 = {
    "ReduceMean": ([node("ReduceMean", "images axes", keepdims=0)], AXES),
    "ReduceMax of all": ([node("ReduceMax", "images")], {}),
    "ReduceL2": ([node("ReduceL2", "images axes", noop_with_empty_axes=0)], AXES),
    "Split": ([node("Split", "images", "a b", axis=2, num_outputs=2), node("Add", "a b")], {}),
    "Resize": (
        [node("Resize", "images - scales", mode="linear", antialias=0)],
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    ),
    "Pad": ([node("Pad", "images pads -")], {"pads": np.array([0, 0, 1, 0, 0, 0, 2, 1])}),
    "LayerNormalization": (
        [node("LayerNormalization", "images w b", axis=-2, epsilon=1e-3)],
        {"w": np.linspace(0.5, 2, 30, dtype=np.float32).reshape(6, 5), "b": np.ones((6, 5), np.float32)},
    ),
    "LayerNormalization without bias": (
        [node("LayerNormalization", "images w", axis=3)],
        {"w": np.linspace(0.5, 2, 5, dtype=np.float32)},
    ),
    "ReduceSum of integers": (
        [
            node("Greater", "images zero", "positive"),
            node("Cast", "positive", "ones", to=TensorProto.INT64),
            node("ReduceSum", "ones axes", keepdims=0),
        ],
        {"zero": np.zeros((), np.float32), **AXES},
    ),
    "ReduceMin of integers": (
        [
            node("Greater", "images low", "above"),
            node("Cast", "above", "ones", to=TensorProto.INT64),
            node("ReduceMin", "ones axes", keepdims=0),
        ],
        {"low": np.full((), -3, np.float32), **AXES},
    ),
}


@pytest.mark.parametrize("case", OF_OPSET_18)
def test_opset_18_in_the_words_of_17(case: str) -> None:
    nodes, constants = OF_OPSET_18[case]
    model = graph_of(nodes, constants, 18)
    images = np.random.default_rng(0).normal(0, 2, SHAPE).astype(np.float32)
    before = ir.to_proto(model).SerializeToString()
    written = for_parser(model, limits_of("8.5.3"), source="m.onnx")
    onnx.checker.check_model(ir.to_proto(written), full_check=True)
    assert written.graph.opset_imports[""] == 17 and written.ir_version == 8
    assert complaints(written, "8.5") == []
    np.testing.assert_allclose(run(written, images), run(model, images), atol=1e-6, rtol=1e-5)
    assert ir.to_proto(model).SerializeToString() == before
    assert for_parser(model, limits_of("10.3.0"), source="m.onnx").graph.opset_imports[""] == 18


@pytest.mark.parametrize(
    ("nodes", "constants", "opset", "message"),
    [
        ([node("Relu", "images")], {}, 19, "got opset 19; export it with --opset 17"),
        (
            [node("Resize", "images - scales", mode="linear", antialias=1)],
            {"scales": np.array([1, 1, 2, 2], np.float32)},
            18,
            r"node y_node \(Resize\): expected what opset 17 has",
        ),
        (
            [node("Pad", "images pads - axes")],
            {"pads": np.array([1, 2]), "axes": np.array([3])},
            18,
            r"node y_node \(Pad\)",
        ),
        (
            [node("Shape", "images", "axes", start=0, end=1), node("ReduceMean", "images axes")],
            {},
            18,
            "axes that are computed",
        ),
    ],
)
def test_what_opset_17_cannot_say(nodes: Any, constants: Any, opset: int, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        for_parser(graph_of(nodes, constants, opset), limits_of("8.6.1"), source="m.onnx")


def test_pixels_want_8_6() -> None:
    model = graph_of([node("Cast", "images", to=TensorProto.FLOAT)], {}, 17, dtype=TensorProto.UINT8)
    with pytest.raises(UnsupportedError, match="export it without --embed-preprocess"):
        for_parser(model, limits_of("8.5.3"), source="m.onnx")
    assert for_parser(model, limits_of("8.6.1"), source="m.onnx").graph.inputs[0].dtype == ir.DataType.UINT8


@pytest.mark.parametrize("inline", [True, False])
def test_an_open_batch_leaves_no_size_to_compute(inline: bool) -> None:
    model = ir.from_proto(colour_cells_onnx(batch=None))
    insert_decode_nms(
        model,
        decode=colour_cells_manifest().decode,
        size_hw=(HEIGHT, WIDTH),
        score_threshold=0.1,
        iou_threshold=0.5,
        inline=inline,
    )
    written = for_parser(model, limits_of("8.5.3"), source="m.onnx")
    assert has_decode_nms(written) != inline and not written.functions
    assert written.graph.inputs[0].shape is not None and not isinstance(written.graph.inputs[0].shape[0], int)
    for entry in written.graph:
        if entry.op_type == "TopK":
            assert entry.inputs[1] is not None and entry.inputs[1].name in written.graph.initializers


def test_open_sizes_stay_computed() -> None:
    nodes = [node("Shape", "images", "sizes"), node("Gather", "sizes batch")]
    model = graph_of(nodes, {"batch": np.array([0])}, 17)
    model.graph.inputs[0].shape = ir.Shape(["batch", 4, 6, 5])
    assert [entry.op_type for entry in fold_known_sizes(model).graph] == ["Shape", "Gather"]
