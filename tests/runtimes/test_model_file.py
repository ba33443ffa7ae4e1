"""What an ONNX file says of itself, and which files are refused before an engine sees them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from boxwright.core.errors import ModelFileError
from boxwright.core.manifest import METADATA_KEY
from boxwright.runtimes.model_file import inspect_onnx, locate_model_file, onnx_without_initializers
from models_for_tests import colour_cells_manifest, colour_cells_onnx, save_colour_cells


def test_inspect_finds_what_the_onnx_package_finds(tmp_path: Path) -> None:
    path = save_colour_cells(tmp_path / "m.onnx", "detections")
    found = inspect_onnx(path)
    model = onnx.load(path)
    assert found.input_names == tuple(entry.name for entry in model.graph.input)
    assert found.output_names == tuple(entry.name for entry in model.graph.output)
    assert found.defaulted_input_names == ("score_threshold", "iou_threshold")
    assert found.metadata == {METADATA_KEY: colour_cells_manifest("detections").to_json()}
    assert found.external_paths == ()


def test_initializers_are_left_out_and_nothing_else(tmp_path: Path) -> None:
    path = save_colour_cells(tmp_path / "m.onnx", "detections")
    shortened = onnx.load_from_string(onnx_without_initializers(path, ("score_threshold",)))
    expected = onnx.load(path)
    kept = [entry for entry in expected.graph.initializer if entry.name != "score_threshold"]
    assert len(kept) == len(expected.graph.initializer) - 1
    del expected.graph.initializer[:]
    expected.graph.initializer.extend(kept)
    assert shortened == expected


def test_every_truncation_is_refused_or_leaves_a_whole_graph(tmp_path: Path) -> None:
    whole = colour_cells_onnx("detections").SerializeToString()
    path = tmp_path / "cut.onnx"
    refused = 0
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        try:
            inspect_onnx(path)
        except ModelFileError:
            refused += 1
        else:  # cut between two fields after the graph: metadata or opsets are lost, the graph is whole
            assert onnx.load_from_string(whole[:length]).graph == onnx.load_from_string(whole).graph
    assert refused > 0.8 * len(range(0, len(whole), 7))


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "an empty file"),
        (b"hello, this is no model", "no ONNX model"),
        (b"\x08\x08", "without a graph"),
        (b"\xff" * 40, "within a number"),
        (b"\x3a\xff\xff\xff\xff\x0f", "bytes too early"),
    ],
)
def test_what_is_no_onnx_file(tmp_path: Path, content: bytes, got: str) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=got):
        inspect_onnx(path)


def _with_external(location: str, place: str) -> bytes:
    """A model with one tensor in a file of its own, in one of the places where tensors can be."""
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "weights")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    output = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])]
    condition = helper.make_tensor_value_info("images", TensorProto.BOOL, [])
    constant = helper.make_node("Constant", [], ["weights"], value=tensor)
    copy = helper.make_node("Identity", ["weights"], ["y"])
    if place == "initializer":
        graph = helper.make_graph([copy], "g", [condition], output, [tensor])
    elif place == "constant":
        graph = helper.make_graph([constant, copy], "g", [condition], output)
    else:
        branch = helper.make_graph([constant, copy], "branch", [], output)
        choice = helper.make_node("If", ["images"], ["y"], then_branch=branch, else_branch=branch)
        graph = helper.make_graph([choice], "g", [condition], output)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if place == "function":
        body = helper.make_function("test", "Weights", [], ["y"], [constant, copy], [helper.make_opsetid("", 17)])
        model.functions.append(body)
    serialized: bytes = model.SerializeToString()
    return serialized


@pytest.mark.parametrize("place", ["initializer", "constant", "subgraph", "function"])
@pytest.mark.parametrize("location", ["../secret.bin", "{outside}", "link.bin", "sub/../../secret.bin"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, place: str, location: str) -> None:
    outside = tmp_path / "secret.bin"
    outside.write_bytes(bytes(16))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(outside)
    path = folder / "m.onnx"
    path.write_bytes(_with_external(location.replace("{outside}", str(outside)), place))
    with pytest.raises(ModelFileError, match="inside the folder"):
        inspect_onnx(path)


def test_external_data_inside_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(_with_external("parts/weights.bin", "initializer"))
    with pytest.raises(ModelFileError, match="no such file"):
        inspect_onnx(path)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "weights.bin").write_bytes(bytes(16))
    assert inspect_onnx(path).external_paths == ((tmp_path / "parts" / "weights.bin").resolve(),)


def test_locate(tmp_path: Path) -> None:
    folder = tmp_path / "m_openvino_model"
    folder.mkdir()
    with pytest.raises(ModelFileError, match="0 of them"):
        locate_model_file(folder)
    (folder / "m.xml").touch()
    assert locate_model_file(folder) == folder / "m.xml"
    assert locate_model_file(folder / "m.xml") == folder / "m.xml"
    (folder / "n.xml").touch()
    with pytest.raises(ModelFileError, match="2 of them"):
        locate_model_file(folder)
    with pytest.raises(ModelFileError, match="does not exist"):
        locate_model_file(tmp_path / "missing.onnx")
