"""What is written for Triton and DeepStream, and outputs by the names of EfficientNMS."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from boxwright.core.errors import InputError, OutputError, UnsupportedError
from boxwright.core.manifest import METADATA_KEY, Manifest
from boxwright.core.preprocess import Preprocess
from boxwright.export import api
from boxwright.export.api import ExportOptions, export
from boxwright.export.onnx_files import read_onnx, set_manifest, write_onnx
from boxwright.export.tensorrt_limits import OLDEST_LIMITS
from boxwright.export.to_deepstream import write_deepstream
from boxwright.export.to_triton import pack_for_triton
from boxwright.runtimes.detector import Detector
from fake_tensorrt import engine_bytes, engine_description, write_engine
from models_for_tests import HEIGHT, WIDTH, colour_cells_manifest, colour_image, save_colour_cells

# Of triton-inference-server/common, protobuf/model_config.proto: names and types of what is written here.
TRITON_MESSAGES: dict[str, dict[str, str]] = {
    "Tensor": {"name": "string", "data_type": "DataType", "dims": "int64*"},
    "Batching": {"max_queue_delay_microseconds": "uint64"},
    "Parameter": {"string_value": "string"},
    "ParameterEntry": {"key": "string", "value": "Parameter"},
    "ModelConfig": {
        "name": "string",
        "backend": "string",
        "default_model_filename": "string",
        "max_batch_size": "int32",
        "input": "Tensor*",
        "output": "Tensor*",
        "dynamic_batching": "Batching",
        "parameters": "ParameterEntry*",
    },
}
IMAGES = [colour_image((1, 2, "red"), (4, 5, "red"), (3, 0, "blue")), colour_image((0, 0, "green"))]


def parse_config(text: str) -> Any:
    """What Triton would read; raises where a name, a type or the syntax is wrong."""
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="test", syntax="proto3")
    types = file.enum_type.add(name="DataType")
    names = ("INVALID", "BOOL", "UINT8", "INT32", "INT64", "FP16", "FP32")
    for number, name in enumerate(names):
        types.value.add(name=f"TYPE_{name}", number=number)
    kinds = descriptor_pb2.FieldDescriptorProto
    for message, fields in TRITON_MESSAGES.items():
        made = file.message_type.add(name=message)
        for number, (name, kind) in enumerate(fields.items(), start=1):
            label = kinds.LABEL_REPEATED if kind.endswith("*") else kinds.LABEL_OPTIONAL
            field = made.field.add(name=name, number=number, label=label)
            kind = kind.rstrip("*")
            if kind[0].isupper():
                field.type = kinds.TYPE_ENUM if kind == "DataType" else kinds.TYPE_MESSAGE
                field.type_name = f".test.{kind}"
            else:
                field.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    config = message_factory.GetMessageClass(pool.FindMessageTypeByName("test.ModelConfig"))()
    text_format.Parse(text, config)
    return config


def _assert_detects_alike(one: Path, other: Path) -> None:
    with Detector(one, backend="onnxruntime") as a, Detector(other, backend="onnxruntime") as b:
        for image in IMAGES:
            first, second = a(image), b(image)
            assert len(first) == len(second) > 0
            np.testing.assert_allclose(first.boxes_xyxy, second.boxes_xyxy, atol=1e-4)
            np.testing.assert_array_equal(first.class_ids, second.class_ids)


@pytest.mark.parametrize(("batch", "largest"), [(1, 0), (None, 16)])
def test_a_repository_of_triton(batch: int | None, largest: int, tmp_path: Path) -> None:
    source = save_colour_cells(tmp_path / "cells.onnx", batch=batch)
    (tmp_path / "repository" / "other").mkdir(parents=True)
    for version in (1, 2):
        result = export(source, tmp_path / "repository", options=ExportOptions(format="triton"))
        assert result.path == tmp_path / "repository"
        assert result.verification is not None and result.verification.matched_fraction == 1
        folder = tmp_path / "repository" / "cells"
        assert sorted(path.name for path in folder.iterdir()) == [*map(str, range(1, version + 1)), "config.pbtxt"]
    assert sorted(path.name for path in (tmp_path / "repository").iterdir()) == ["cells", "other"]
    config = parse_config((folder / "config.pbtxt").read_text())
    assert (config.name, config.backend, config.max_batch_size) == ("cells", "onnxruntime", largest)
    assert config.HasField("dynamic_batching") == (largest > 0)
    (images,) = config.input  # the thresholds have values of their own
    head = [] if largest else [1]
    assert (images.name, images.data_type, list(images.dims)) == ("images", 6, [*head, 3, HEIGHT, WIDTH])
    assert [tensor.name for tensor in config.output] == ["num_detections", "boxes", "scores", "class_ids"]
    assert [list(tensor.dims) for tensor in config.output] == [[*head, 1], [*head, 5, 4], [*head, 5], [*head, 5]]
    assert [tensor.data_type for tensor in config.output] == [3, 6, 6, 3]
    (parameter,) = config.parameters
    assert parameter.key == METADATA_KEY
    assert Manifest.from_json(parameter.value.string_value).class_names == ("blue", "green", "red")
    file = folder / "2" / config.default_model_filename
    onnx.checker.check_model(str(file))
    _assert_detects_alike(source, file)


@pytest.mark.parametrize("wanted", ["triton", "deepstream"])
def test_the_threshold_of_the_overlap_is_the_model_s_own(wanted: Any, tmp_path: Path) -> None:
    """Nobody gives these the thresholds that `Detector` gives: the defaults inside decide."""
    manifest = colour_cells_manifest(iou_threshold=0.45)
    source = save_colour_cells(tmp_path / "cells.onnx", manifest=manifest)
    for iou, inside in ((None, 0.45), (0.6, 0.6)):
        folder = export(source, tmp_path / f"{wanted}{iou and 6}", options=ExportOptions(format=wanted, iou=iou)).path
        initializers = {tensor.name: tensor for tensor in onnx.load(next(folder.rglob("model.onnx"))).graph.initializer}
        assert onnx.numpy_helper.to_array(initializers["iou_threshold"]) == np.float32(inside)


def test_triton_with_openvino(tmp_path: Path) -> None:
    source = save_colour_cells(tmp_path / "cells.onnx")
    export(source, options=ExportOptions(format="triton", triton_backend="openvino"))
    config = parse_config((tmp_path / "cells_triton" / "cells" / "config.pbtxt").read_text())
    assert (config.backend, config.default_model_filename) == ("openvino", "model.onnx")


def test_triton_takes_engines_as_they_are(tmp_path: Path) -> None:
    engine = write_engine(
        tmp_path / "m.engine",
        engine_description(),
        fixed_thresholds={"score_threshold": 0.001},
        needs_plugin=True,
        batch_sizes=(1, 8),
    )
    result = export(engine, options=ExportOptions(format="triton"))
    folder = result.path / "m"
    assert (folder / "1" / "model.plan").read_bytes() == engine.read_bytes()
    assert (folder / "1" / "model.plan.manifest.json").is_file()
    text = (folder / "config.pbtxt").read_text()
    config = parse_config(text)
    assert (config.backend, config.max_batch_size, config.default_model_filename) == ("tensorrt", 8, "model.plan")
    assert config.HasField("dynamic_batching")
    assert "# Build it again with: boxwright export m.onnx --format tensorrt --precision fp16" in text
    assert "--backend-config=tensorrt,plugins=" in text and "LD_PRELOAD=" in text
    assert (result.manifest.variant, result.verification) == ("bright-spots", None)


def test_triton_takes_engines_of_trtexec(tmp_path: Path) -> None:
    save_colour_cells(tmp_path / "m.onnx", stage="detections")
    (tmp_path / "m.plan").write_bytes(b"whatever trtexec wrote")
    result = export(tmp_path / "m.plan", tmp_path / "repository", options=ExportOptions(format="triton"))
    config = parse_config((result.path / "m" / "config.pbtxt").read_text())
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("tensorrt", "model.plan", 0)
    assert "max_batch_size" not in (result.path / "m" / "config.pbtxt").read_text()
    assert (result.path / "m" / "1" / "model.plan").read_bytes() == b"whatever trtexec wrote"
    assert result.manifest == colour_cells_manifest("detections")


def test_triton_cannot_feed_single_numbers(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "m.engine", engine_description())
    with pytest.raises(UnsupportedError, match=r"--fixed-thresholds, or in one step: boxwright export"):
        pack_for_triton(tmp_path / "repository", "m", engine)
    assert not (tmp_path / "repository").exists()
    pytest.importorskip("openvino")
    folder = export(save_colour_cells(tmp_path / "cells.onnx"), options=ExportOptions(format="openvino")).path
    with pytest.raises(UnsupportedError, match="--triton-backend openvino"):
        export(folder, options=ExportOptions(format="triton"))
    raw = export(tmp_path / "cells.onnx", tmp_path / "raw", options=ExportOptions(format="openvino", nms="none")).path
    result = export(raw, options=ExportOptions(format="triton"))
    config = parse_config((result.path / "raw" / "config.pbtxt").read_text())
    assert (config.backend, config.default_model_filename) == ("openvino", "model.xml")
    assert (result.path / "raw" / "1" / "model.bin").stat().st_size > 0


def test_bad_places_and_names(tmp_path: Path) -> None:
    bare = tmp_path / "bare.engine"
    bare.write_bytes(engine_bytes(engine_description()))
    with pytest.raises(InputError, match=r"bare\.engine\.manifest\.json beside it"):
        export(bare, options=ExportOptions(format="triton"))
    with pytest.raises(InputError, match="does not exist"):
        export(tmp_path / "none.engine", options=ExportOptions(format="triton"))
    source = save_colour_cells(tmp_path / "m n.onnx")
    with pytest.raises(InputError, match="letters, digits"):
        export(source, tmp_path / "repository", options=ExportOptions(format="triton"))
    plain = save_colour_cells(tmp_path / "m.onnx")
    (tmp_path / "repository" / "m").mkdir(parents=True)
    (tmp_path / "repository" / "m" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="or a model of Triton"):
        export(plain, tmp_path / "repository", options=ExportOptions(format="triton"))
    assert (tmp_path / "repository" / "m" / "notes.txt").read_text() == "mine"
    with pytest.raises(OutputError, match="a folder for DeepStream"):
        export(plain, tmp_path / "repository", options=ExportOptions(format="deepstream"))
    with pytest.raises(InputError, match="--output-names with --nms none"):
        ExportOptions(nms="none", output_names="efficientnms")
    for changes in ({"format": "deepstream"}, {"format": "triton", "triton_backend": "openvino"}):
        with pytest.raises(InputError, match=r"--nms for --format \w+: expected graph or none, got 'plugin'"):
            ExportOptions(nms="plugin", **changes)  # type: ignore[arg-type]
    ExportOptions(nms="plugin", format="triton")


@pytest.mark.parametrize("nms", ["graph", "plugin"])
@pytest.mark.parametrize("pixels", [False, True])
def test_names_of_efficientnms(nms: Any, pixels: bool, tmp_path: Path) -> None:
    source = save_colour_cells(tmp_path / "m.onnx")
    options = ExportOptions(nms=nms, output_names="efficientnms", embed_preprocess=pixels)
    path = export(source, tmp_path / "e.onnx", options=options).path
    names = [value.name for value in onnx.load(str(path)).graph.output]
    assert names == ["num_dets", "det_boxes", "det_scores", "det_classes"]
    _assert_detects_alike(source, path)


def test_a_folder_for_deepstream(tmp_path: Path) -> None:
    source = save_colour_cells(tmp_path / "cells.onnx")
    result = export(source, options=ExportOptions(format="deepstream", precision="fp16"))
    assert result.path == tmp_path / "cells_deepstream"
    lines = (result.path / "config_infer.txt").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    assert settings["infer-dims"] == f"3;{HEIGHT};{WIDTH}"
    assert (settings["network-mode"], settings["num-detected-classes"], settings["model-color-format"]) == (
        "2",
        "3",
        "1",
    )
    assert (settings["maintain-aspect-ratio"], settings["symmetric-padding"]) == ("1", "0")
    assert float(settings["net-scale-factor"]) == pytest.approx(1 / 255)
    assert settings["pre-cluster-threshold"] == "0.25"
    assert (result.path / settings["labelfile-path"]).read_text().split() == ["blue", "green", "red"]
    assert (result.path / "nvdsinfer_boxwright.cpp").is_file()
    _assert_detects_alike(source, result.path / settings["onnx-file"])
    export(source, result.path, options=ExportOptions(format="deepstream"))  # replaces its own kind


def test_nvinfer_gets_no_more_candidates_than_it_sorts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It builds the engine by itself, with whatever TensorRT is there."""
    monkeypatch.setattr(api, "OLDEST_LIMITS", replace(OLDEST_LIMITS, largest_k=40))
    source = save_colour_cells(tmp_path / "cells.onnx")
    result = export(source, options=ExportOptions(format="deepstream"))
    assert [note.partition(":")[0] for note in result.notes] == ["--max-candidates 40"]
    assert result.manifest.decode.nms is not None and result.manifest.decode.nms.pre_nms_top_k == 40
    assert export(source, options=ExportOptions(format="triton")).notes == ()


def test_what_nvinfer_cannot_preprocess(tmp_path: Path) -> None:
    manifest = colour_cells_manifest("detections")
    odd = Preprocess(
        size_hw=(HEIGHT, WIDTH), resize="stretch", channel_order="RGB", mean=(0.5,) * 3, std=(0.2, 0.3, 0.2)
    )
    with pytest.raises(UnsupportedError, match=r"one scale for all channels, got the deviations 0\.2, 0\.3, 0\.2"):
        write_deepstream(
            tmp_path / "d", replace(manifest, preprocess=odd), lambda path: None, batch=1, precision="fp32"
        )
    even = replace(odd, std=(0.25,) * 3)
    write_deepstream(
        tmp_path / "d", replace(manifest, preprocess=even), lambda path: path.touch(), batch=4, precision="int8"
    )
    text = (tmp_path / "d" / "config_infer.txt").read_text()
    # (x / 255 - 0.5) / 0.25 = 4 / 255 * (x - 127.5)
    assert "net-scale-factor=0.0156862745\noffsets=127.5;127.5;127.5" in text
    with pytest.raises(UnsupportedError, match="decodes by itself"):
        write_deepstream(tmp_path / "e", colour_cells_manifest(), lambda path: None, batch=1, precision="fp32")
    assert not (tmp_path / "e").exists()


# What the parser uses of DeepStream's nvdsinfer_custom_impl.h, by the same names and types.
DEEPSTREAM_HEADER = """
#include <vector>
struct NvDsInferDims { unsigned int numDims; unsigned int d[8]; unsigned int numElements; };
struct NvDsInferLayerInfo { int dataType; NvDsInferDims inferDims; int bindingIndex; const char* layerName;
                            void* buffer; int isInput; };
struct NvDsInferNetworkInfo { unsigned int width, height, channels; };
struct NvDsInferParseDetectionParams { unsigned int numClassesConfigured;
                                       std::vector<float> perClassPreclusterThreshold; };
struct NvDsInferObjectDetectionInfo { unsigned int classId; float left, top, width, height, detectionConfidence; };
typedef NvDsInferObjectDetectionInfo NvDsInferParseObjectInfo;
typedef bool (*NvDsInferParseCustomFunc)(std::vector<NvDsInferLayerInfo> const&, NvDsInferNetworkInfo const&,
                                         NvDsInferParseDetectionParams const&,
                                         std::vector<NvDsInferParseObjectInfo>&);
#define CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(name) static NvDsInferParseCustomFunc checked_##name = name
"""
DEEPSTREAM_MAIN = """
#include "nvdsinfer_boxwright.cpp"
#include <cstdio>
int main() {
    int count = 5, classes[] = {2, 0, 1, 7, -1};
    float boxes[] = {10, 20, 30, 60, -5, -5, 200, 90, 1, 1, 2, 2, 0, 0, 9, 9, 0, 0, 9, 9};
    float scores[] = {0.9f, 0.5f, 0.2f, 0.9f, 0.9f};
    const char* names[][4] = {{"class_ids", "scores", "boxes", "num_detections"},
                              {"det_classes", "det_scores", "det_boxes", "num_dets"}};
    for (auto& name : names) {
        void* buffers[] = {classes, scores, boxes, &count};
        std::vector<NvDsInferLayerInfo> outputs(4);
        for (int i = 0; i < 4; ++i) { outputs[i].layerName = name[i]; outputs[i].buffer = buffers[i]; }
        std::vector<NvDsInferParseObjectInfo> objects;
        if (!NvDsInferParseBoxwright(outputs, {100, 80, 3}, {3, {0.25f, 0.25f, 0.25f}}, objects)) { return 1; }
        for (auto& o : objects) {
            std::printf("%u %g %g %g %g %g\\n", o.classId, o.left, o.top, o.width, o.height, o.detectionConfidence);
        }
        outputs[0].layerName = "else";
        if (NvDsInferParseBoxwright(outputs, {100, 80, 3}, {3, {0.25f, 0.25f, 0.25f}}, objects)) { return 2; }
    }
}
"""


def test_the_parser_of_deepstream(tmp_path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    write_deepstream(
        tmp_path / "d", colour_cells_manifest("detections"), lambda path: path.touch(), batch=1, precision="fp32"
    )
    (tmp_path / "d" / "nvdsinfer_custom_impl.h").write_text(DEEPSTREAM_HEADER)
    (tmp_path / "d" / "main.cpp").write_text(DEEPSTREAM_MAIN)
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unused-variable", "main.cpp", "-o", "run"]
    subprocess.run(command, cwd=tmp_path / "d", check=True)
    run = subprocess.run([str(tmp_path / "d" / "run")], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == 2 * ["2 10 20 20 40 0.9", "0 0 0 100 80 0.5"]
    assert run.stderr.count("expected the outputs num_detections") == 2


def test_outputs_are_renamed_once(tmp_path: Path) -> None:
    from boxwright.export.efficientnms_outputs import rename_outputs

    model = read_onnx(save_colour_cells(tmp_path / "m.onnx", stage="detections"))
    assert rename_outputs(model) is True
    assert rename_outputs(model) is False
    assert rename_outputs(read_onnx(save_colour_cells(tmp_path / "r.onnx"))) is False
    set_manifest(model, colour_cells_manifest("detections"))
    write_onnx(model, tmp_path / "n.onnx")
    assert isinstance(model, ir.Model)
    _assert_detects_alike(tmp_path / "m.onnx", tmp_path / "n.onnx")
