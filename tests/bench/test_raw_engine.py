"""The bare engine runs the graph up to the raw heads, and nothing after them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from boxwright.bench.raw_engine import cut_onnx, open_raw_engine
from boxwright.core.errors import UnsupportedError
from boxwright.core.manifest import METADATA_KEY
from boxwright.runtimes.backend import open_backend
from boxwright.runtimes.detector import Detector
from models_for_tests import HEIGHT, MAX_DETECTIONS, NUM_CELLS, WIDTH, colour_cells_onnx, save_colour_cells

HEADS = {"box_regression", "class_logits"}


def images(batch: int = 1) -> np.ndarray:
    return np.random.default_rng(0).random((batch, 3, HEIGHT, WIDTH), dtype=np.float32)


def learned_heads_onnx() -> onnx.ModelProto:
    """Heads that depend on the image, and a tail that reads both: the first boxes are taken for the best."""
    node, random = onnx.helper.make_node, np.random.default_rng(1)
    constants = {
        "box_weights": random.random((4, 3, 8, 8)).astype(np.float32),
        "class_weights": random.random((3, 3, 8, 8)).astype(np.float32),
        "box_shape": np.array([0, 4, NUM_CELLS], np.int64),
        "class_shape": np.array([0, 3, NUM_CELLS], np.int64),
        "start": np.array([0], np.int64),
        "end": np.array([MAX_DETECTIONS], np.int64),
        "axis": np.array([1], np.int64),
    }
    nodes = [
        node("Conv", ["images", "box_weights"], ["box_map"], strides=[8, 8]),
        node("Reshape", ["box_map", "box_shape"], ["box_rows"]),
        node("Transpose", ["box_rows"], ["box_regression"], perm=[0, 2, 1]),
        node("Conv", ["images", "class_weights"], ["class_map"], strides=[8, 8]),
        node("Reshape", ["class_map", "class_shape"], ["class_rows"]),
        node("Transpose", ["class_rows"], ["class_logits"], perm=[0, 2, 1]),
        node("Slice", ["box_regression", "start", "end", "axis"], ["boxes"]),
        node("ReduceMax", ["class_logits"], ["best"], axes=[2], keepdims=0),
        node("Slice", ["best", "start", "end", "axis"], ["scores"]),
        node("ArgMax", ["class_logits"], ["best_class"], axis=2, keepdims=0),
        node("Slice", ["best_class", "start", "end", "axis"], ["long_ids"]),
        node("Cast", ["long_ids"], ["class_ids"], to=onnx.TensorProto.INT32),
        node("ReduceMax", ["class_ids"], ["num_detections"], axes=[1], keepdims=1),
    ]
    whole = colour_cells_onnx("detections", thresholds="constant")
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = onnx.helper.make_graph(nodes, "learned", whole.graph.input, whole.graph.output, initializers)
    model = onnx.helper.make_model(graph, opset_imports=whole.opset_import, ir_version=8)
    model.metadata_props.extend(whole.metadata_props)
    return model


def save(model: onnx.ModelProto, path: Path) -> Path:
    """As an ONNX file, or by a folder's name as an IR."""
    if path.suffix == ".onnx":
        onnx.save(model, path)
        return path
    import openvino

    path.mkdir()
    ir = openvino.Core().read_model(model.SerializeToString())
    ir.set_rt_info(next(entry.value for entry in model.metadata_props), METADATA_KEY)
    openvino.save_model(ir, path / "model.xml", compress_to_fp16=False)
    return path


@pytest.mark.parametrize("file", ["learned.onnx", "learned_openvino_model"])
def test_the_cut_graph_gives_the_raw_heads_of_the_whole_one(tmp_path: Path, file: str) -> None:
    model = learned_heads_onnx()
    path = save(model, tmp_path / file)
    with (
        Detector(path) as detector,
        open_raw_engine(path, detector, num_threads=1, work_dir=tmp_path) as engine,
    ):
        assert set(engine.outputs) == HEADS
        assert set(engine.inputs) == {"images"}
        assert (engine.name, engine.precision) == (detector.backend.name, "fp32")
        got = engine.run({"images": images()})
        whole = detector.backend.run({"images": images()})
    constants = {entry.name: onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer}
    for head, weights in (("box_regression", "box_weights"), ("class_logits", "class_weights")):
        expected = np.einsum(
            "bcyixj,kcij->byxk", images().reshape(1, 3, HEIGHT // 8, 8, WIDTH // 8, 8), constants[weights]
        ).reshape(1, NUM_CELLS, -1)
        np.testing.assert_allclose(got[head], expected, rtol=1e-4)
    np.testing.assert_array_equal(whole["boxes"], got["box_regression"][:, :MAX_DETECTIONS])


def test_nothing_after_the_heads_is_left(tmp_path: Path) -> None:
    path = save_colour_cells(tmp_path / "cells.onnx", "detections")
    assert set(cut_onnx(path, tmp_path / "cut.onnx")) == HEADS
    cut = onnx.load(tmp_path / "cut.onnx")
    onnx.checker.check_model(cut, full_check=True)
    raw_nodes = [node.op_type for node in colour_cells_onnx("raw").graph.node]
    assert [node.op_type for node in cut.graph.node] == raw_nodes
    assert {tensor.name for tensor in cut.graph.initializer} == {
        "scale",
        "half",
        "heads_shape",
        "cell_box",
        "box_shape",
    }


def test_a_file_that_the_host_decodes_is_its_own_bare_engine(tmp_path: Path) -> None:
    path = save_colour_cells(tmp_path / "cells.onnx", "raw", batch=None)
    with Detector(path) as detector:
        assert open_raw_engine(path, detector, num_threads=1, work_dir=tmp_path) is detector.backend


@pytest.mark.parametrize("file", ["cells.onnx", "cells_openvino_model"])
def test_a_graph_without_the_heads_names_cannot_be_cut(tmp_path: Path, file: str) -> None:
    model = learned_heads_onnx()
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = "renamed" if name == "class_logits" else name
    path = save(model, tmp_path / file)
    with Detector(path) as detector, pytest.raises(UnsupportedError, match="--nms none"):
        open_raw_engine(path, detector, num_threads=1, work_dir=tmp_path)


def test_subgraphs_keep_what_they_read_from_outside(tmp_path: Path) -> None:
    """Heads below an If whose branches read a tensor of the outer graph."""
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    branch_output = [info("inner", onnx.TensorProto.FLOAT, None)]
    then_branch = onnx.helper.make_graph([node("Neg", ["outer"], ["inner"])], "then", [], branch_output)
    else_branch = onnx.helper.make_graph([node("Abs", ["outer"], ["inner"])], "else", [], branch_output)
    nodes = [
        node("Exp", ["images"], ["outer"]),
        node("If", ["condition"], ["box_regression"], then_branch=then_branch, else_branch=else_branch),
        node("Identity", ["images"], ["class_logits"]),
        node("Add", ["box_regression", "class_logits"], ["sum"]),
    ]
    condition = onnx.numpy_helper.from_array(np.array(True), "condition")
    unused = onnx.numpy_helper.from_array(np.array(1.0, np.float32), "unused")
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [info("images", onnx.TensorProto.FLOAT, [1, 2, 4])],
        [info("sum", onnx.TensorProto.FLOAT, [1, 2, 4])],
        [condition, unused],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8),
              tmp_path / "whole.onnx")  # fmt: skip
    assert cut_onnx(tmp_path / "whole.onnx", tmp_path / "cut.onnx") == ("box_regression", "class_logits")
    x = np.array([[[1, 2, 3, 4], [0, -1, -2, -3]]], np.float32)
    with open_backend(tmp_path / "cut.onnx") as engine:
        np.testing.assert_allclose(engine.run({"images": x})["box_regression"], -np.exp(x), rtol=1e-6)
    assert [tensor.name for tensor in onnx.load(tmp_path / "cut.onnx").graph.initializer] == ["condition"]
