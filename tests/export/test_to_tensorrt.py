"""Building engines, against a fake of each generation that has what the real module has and nothing else."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from boxwright.core.errors import InputError, UnsupportedError, VerificationError
from boxwright.core.manifest import Manifest, VerificationRecord
from boxwright.export.decode_nms.insert import insert_decode_nms
from boxwright.export.float_layers import find_float_layers
from boxwright.export.half_precision import half_candidates, to_half, with_types
from boxwright.export.tensorrt_api import BuilderApi
from boxwright.export.tensorrt_limits import limits_of
from boxwright.export.tensorrt_options import EngineOptions, Profile, default_profile, parse_float_layers
from boxwright.export.tensorrt_request import BuildMachine, EngineRequest
from boxwright.export.to_tensorrt import convert_to_tensorrt, move_engine, rebuild_command
from boxwright.runtimes import tensorrt_library
from boxwright.runtimes.cuda_runtime import CudaDevice
from boxwright.runtimes.engine_sidecar import EngineSidecar, check_fits_machine, read_sidecar, sidecar_path
from fake_tensorrt_builder import Record, fake_builder_module
from models_for_tests import HEIGHT, WIDTH, colour_cells_manifest, colour_cells_onnx, colour_image
from recorded_tensorrt import GENERATIONS, SIGNATURES

EIGHT = tuple(version for version in GENERATIONS if version.startswith("8."))
TEN = tuple(version for version in GENERATIONS if version.startswith("10."))
ELEVEN = tuple(version for version in GENERATIONS if version.startswith("11."))
AGREES = VerificationRecord(
    reference="test",
    num_images=1,
    num_boxes=60,
    matched_fraction=1.0,
    worst_box_difference=0.0,
    worst_score_difference=0.0,
    proven=True,
)
DIFFERS = replace(AGREES, matched_fraction=0.5)


class FakeCuda:
    """Memory of a GPU: what is copied there is kept, and what is given back."""

    def __init__(self) -> None:
        self.allocated: dict[int, int] = {}
        self.freed: list[int] = []
        self.copies: list[tuple[int, int]] = []

    def allocate(self, num_bytes: int) -> int:
        address = 4096 * (len(self.allocated) + 1)
        self.allocated[address] = num_bytes
        return address

    def free(self, address: int) -> None:
        self.freed.append(address)

    def create_stream(self) -> int:
        return 7

    def destroy_stream(self, stream: int) -> None:
        assert stream == 7

    def synchronize(self, stream: int) -> None:
        assert stream == 7

    def copy_to_device(self, target: int, source: int, num_bytes: int, stream: int) -> None:
        assert source != 0 and self.allocated[target] == num_bytes
        self.copies.append((target, num_bytes))


DEVICE = CudaDevice(index=0, name="NVIDIA Fake", compute_capability="8.7", is_integrated=True, memory_bytes=1 << 33)


def machine_of(version: str, record: Record, cuda: FakeCuda | None = None) -> BuildMachine:
    module = fake_builder_module(version, record)
    return BuildMachine(api=BuilderApi.of(module), cuda=cuda or FakeCuda(), device=DEVICE)  # type: ignore[arg-type]


@functools.lru_cache
def detector_graph(
    *, batch: int | None = 1, inline: bool = True, stage: str = "detections"
) -> tuple[ir.Model, Manifest]:
    """The colour cells with DecodeNMS behind them."""
    model = ir.from_proto(colour_cells_onnx(batch=batch))
    manifest = colour_cells_manifest()
    if stage == "detections":
        insert_decode_nms(
            model,
            decode=manifest.decode,
            size_hw=(HEIGHT, WIDTH),
            score_threshold=0.1,
            iou_threshold=0.5,
            inline=inline,
        )
        manifest = replace(manifest, stage="detections")
    return model, manifest


def request_for(
    precision: str = "fp32", *, batch: int | None = 1, inline: bool = True, **changes: Any
) -> EngineRequest:
    graph, manifest = detector_graph(batch=batch, inline=inline)
    fields: dict[str, Any] = {
        "graph": graph,
        "manifest": manifest,
        "precision": precision,
        "batch": batch or 1,
        "options": EngineOptions(),
        "images": [colour_image((1, 1, "red"))] * 5,
        "compare": lambda path: AGREES,
        "source": "cells.onnx",
        "rebuild_command": "boxwright export cells.onnx --format tensorrt",
    }
    return EngineRequest(**{**fields, **changes})


@pytest.fixture(autouse=True)
def _fresh_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_library, "_loaded_plugins", set())


def convert(
    version: str, request: EngineRequest, folder: Path, record: Record | None = None, cuda: FakeCuda | None = None
) -> tuple[Record, Path, list[str]]:
    record = record or Record()
    said: list[str] = []
    engine = folder / "m.engine"
    convert_to_tensorrt(machine_of(version, record, cuda), request, engine, folder, said.append)
    return record, engine, said


# ---- every generation ----


@pytest.mark.parametrize("version", GENERATIONS)
def test_an_engine_and_its_description(version: str, tmp_path: Path) -> None:
    record, engine, said = convert(version, request_for(), tmp_path)
    assert engine.read_bytes().startswith(b"ENGINE")
    sidecar = read_sidecar(engine)
    assert (sidecar.tensorrt_version, sidecar.gpu_name, sidecar.compute_capability) == (version, "NVIDIA Fake", "8.7")
    assert (sidecar.precision, sidecar.manifest.precision, sidecar.needs_plugin) == ("fp32", "fp32", False)
    assert sidecar.batch_sizes == (1, 1)
    assert sidecar.engine_sha256 == hashlib.sha256(engine.read_bytes()).hexdigest()
    assert record.cleared == {"TF32"} and record.flags == set()
    assert record.model is not None
    # Thresholds are inputs to be set while the engine runs.
    assert [value.name for value in record.model.graph.input] == ["images", "score_threshold", "iou_threshold"]
    assert not {"score_threshold", "iou_threshold"} & {tensor.name for tensor in record.model.graph.initializer}
    progress = "Building Engine (1 of 2)" if version in TEN + ELEVEN else "building the engine"
    assert progress in said


@pytest.mark.parametrize("version", GENERATIONS)
def test_thresholds_that_are_built_in(version: str, tmp_path: Path) -> None:
    """What is given to the parser takes images alone, and finds what the source finds with these thresholds."""
    record, engine, _ = convert(version, request_for(options=EngineOptions(fixed_thresholds=True)), tmp_path)
    assert record.model is not None
    assert [value.name for value in record.model.graph.input] == ["images"]
    assert read_sidecar(engine).fixed_thresholds == pytest.approx({"score_threshold": 0.1, "iou_threshold": 0.5})
    image = colour_image((1, 1, "red"), (3, 6, "dark blue"))
    images = (image.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    source, built = detector_graph()[0], ir.from_proto(record.model)
    wanted = run(source, images, tmp_path / "source.onnx", score_threshold=0.1)
    got = run(built, images, tmp_path / "built.onnx")
    assert wanted["num_detections"].tolist() == [[2]]
    for name, array in wanted.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.mark.parametrize("version", GENERATIONS)
def test_networks_are_of_the_kind_that_the_generation_has(version: str, tmp_path: Path) -> None:
    flags = SIGNATURES[version]["enums"]["NetworkDefinitionCreationFlag"]
    record, _, _ = convert(version, request_for(), tmp_path)
    wanted = {"8": ["EXPLICIT_BATCH"], "10": ["EXPLICIT_BATCH", "STRONGLY_TYPED"], "11": ["STRONGLY_TYPED"]}
    assert record.network_flags == sum(1 << flags[name] for name in wanted[version.split(".")[0]])


@pytest.mark.parametrize("version", EIGHT)
def test_half_precision_by_flags(version: str, tmp_path: Path) -> None:
    """The network may compute in half precision; the operator, and what is asked for, may not."""
    graph, _ = detector_graph()
    pinned = next(name for name in half_candidates(with_types(graph)))
    options = EngineOptions(float_layers=(pinned,))
    record, engine, _ = convert(version, request_for("fp16", options=options), tmp_path)
    assert record.flags == {"FP16", "OBEY_PRECISION_CONSTRAINTS"}
    held = record.float_layers()
    assert pinned in held
    free = {name for name in half_candidates(with_types(graph)) if name != pinned}
    assert len(free) >= 3 and not free & held
    assert record.model is not None
    nodes = {node.name: node.op_type for node in record.model.graph.node}
    # What compares, sorts and suppresses reads floats and gives whole numbers: it is held as well.
    assert {"Greater", "TopK", "NonMaxSuppression", "Mul"} <= {nodes[name] for name in held}
    assert not {"Shape", "And"} & {nodes[name] for name in held}
    layers = {layer._name: layer for layer in record.layers}
    sort = next(layers[name] for name in held if nodes[name] == "TopK")
    assert sort._output_types == {0: 0}  # the numbers, not their places
    assert pinned in read_sidecar(engine).build_options["layers in float32"]
    assert all(value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT16 for value in record.model.graph.value_info)  # type: ignore[union-attr]


@pytest.mark.parametrize("version", TEN + ELEVEN)
def test_half_precision_by_the_types_of_the_graph(version: str, tmp_path: Path) -> None:
    record, engine, _ = convert(version, request_for("fp16"), tmp_path)
    assert record.flags == set() and record.float_layers() == set()
    assert record.model is not None
    casts = [node for node in record.model.graph.node if node.op_type == "Cast"]
    targets = [attribute.i for node in casts for attribute in node.attribute if attribute.name == "to"]
    assert onnx.TensorProto.FLOAT16 in targets
    assert [value.type.tensor_type.elem_type for value in record.model.graph.output] == [6, 1, 1, 6]
    assert read_sidecar(engine).manifest.precision == "fp16"


@pytest.mark.parametrize("version", EIGHT + TEN)
def test_int8_by_the_calibrator(version: str, tmp_path: Path) -> None:
    cuda, cache = FakeCuda(), tmp_path / "cells.cache"
    options = EngineOptions(calibration_cache=cache)
    request = request_for("int8", batch=None, options=options)
    record, engine, _ = convert(version, replace(request, batch=2), tmp_path, cuda=cuda)
    assert record.flags == {"FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"}
    # Five images, two a batch: two batches, each the input and both thresholds.
    assert [len(addresses) for addresses in record.calibrated_on] == [3, 3]
    assert sorted(size for _, size in cuda.copies) == [4] * 4 + [2 * 3 * HEIGHT * WIDTH * 4] * 2
    assert sorted(cuda.freed) == sorted(cuda.allocated)
    assert cache.read_bytes().startswith(b"TRT-")
    assert record.calibration_profile == record.profiles[0]
    assert read_sidecar(engine).manifest.precision == "int8"
    # With the cache no image is needed.
    again, _, _ = convert(version, replace(request, images=()), tmp_path)
    assert again.calibrated_on == []


@pytest.mark.parametrize("version", ELEVEN)
def test_int8_without_calibrators_names_the_way(version: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="run first: boxwright calibrate") as caught:
        convert(version, request_for("int8"), tmp_path)
    assert "\n" not in str(caught.value) and not (tmp_path / "m.engine").exists()


def quantized_request(zero_point: np.ndarray) -> EngineRequest:
    """A graph with one Q/DQ pair."""
    proto = colour_cells_onnx()
    nodes = list(proto.graph.node)
    nodes[1].input[0] = "means_dq"
    pair = [
        onnx.helper.make_node("QuantizeLinear", ["means", "qs", "qz"], ["means_q"], name="means/Q"),
        onnx.helper.make_node("DequantizeLinear", ["means_q", "qs", "qz"], ["means_dq"], name="means/DQ"),
    ]
    del proto.graph.node[:]
    proto.graph.node.extend([nodes[0], *pair, *nodes[1:]])
    proto.graph.initializer.extend(
        [onnx.numpy_helper.from_array(np.array(0.01, np.float32), "qs"), onnx.numpy_helper.from_array(zero_point, "qz")]
    )
    manifest = replace(colour_cells_manifest(), precision="int8")
    return request_for(graph=ir.from_proto(proto), manifest=manifest)


@pytest.mark.parametrize("version", GENERATIONS)
def test_int8_by_the_graph(version: str, tmp_path: Path) -> None:
    record, engine, _ = convert(version, quantized_request(np.array(0, np.int8)), tmp_path)
    assert ("INT8" in record.flags) == (version in EIGHT)
    assert record.model is not None and "QuantizeLinear" in {node.op_type for node in record.model.graph.node}
    sidecar = read_sidecar(engine)
    assert (sidecar.precision, sidecar.manifest.precision) == ("int8", "int8")


@pytest.mark.parametrize("zero_point", [np.array(128, np.uint8), np.array(0, np.uint8), np.array(3, np.int8)])
def test_quantization_with_zero_points_is_refused(zero_point: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"layer means/Q.*--engine tensorrt"):
        convert("10.3.0", quantized_request(zero_point), tmp_path)


# ---- options ----


@pytest.mark.parametrize("version", GENERATIONS)
def test_options_reach_the_builder(version: str, tmp_path: Path) -> None:
    options = EngineOptions(
        workspace_mb=256,
        timing_cache=tmp_path / "timing.cache",
        profiles=(Profile.parse("1x3x48x64,2x3x48x64,4x3x48x64"), Profile.parse("8x3x48x64")),
        without_cudnn=True,
    )
    record, engine, _ = convert(version, request_for(batch=None, options=options), tmp_path)
    assert record.pools == {"WORKSPACE": 256 << 20}
    sources = SIGNATURES[version]["enums"]["TacticSource"]
    assert record.tactic_sources == 1 << sources["EDGE_MASK_CONVOLUTIONS"] | 1 << sources["JIT_CONVOLUTIONS"]
    assert record.profiles == [
        {"images": ((1, 3, 48, 64), (2, 3, 48, 64), (4, 3, 48, 64))},
        {"images": ((8, 3, 48, 64),) * 3},
    ]
    assert record.timing_caches == [b""]
    assert options.timing_cache is not None and options.timing_cache.read_bytes() == b"+measured"
    # The second build starts from what was measured; a cache that does not fit is replaced.
    assert convert(version, request_for(options=replace(options, profiles=())), tmp_path)[0].timing_caches == [
        b"+measured"
    ]
    other = convert(version, request_for(options=replace(options, profiles=())), tmp_path, Record(takes_cache=False))[0]
    assert other.timing_caches == [b""]
    assert read_sidecar(engine).build_options["workspace"] == "256 MiB"


@pytest.mark.parametrize("version", GENERATIONS)
def test_dla_of_a_jetson(version: str, tmp_path: Path) -> None:
    options = EngineOptions(dla_core=1, float_layers=())
    record, engine, _ = convert(version, request_for("fp16", options=options), tmp_path, Record(num_dla_cores=2))
    assert record.device == {"type": "DLA", "core": 1}
    assert "GPU_FALLBACK" in record.flags
    assert ("FP16" in record.flags) == (version not in ELEVEN)
    assert read_sidecar(engine).dla_core == 1
    with pytest.raises(UnsupportedError, match=r"--dla-core: expected one of the 0 DLA cores"):
        convert(version, request_for("fp16", options=options), tmp_path)
    with pytest.raises(InputError, match="--precision fp16 or int8"):
        convert(version, request_for(options=options), tmp_path, Record(num_dla_cores=2))


def test_an_open_batch_has_a_profile(tmp_path: Path) -> None:
    record, engine, _ = convert("10.3.0", request_for(batch=None), tmp_path)
    assert record.profiles == [{"images": ((1, 3, 48, 64), (1, 3, 48, 64), (16, 3, 48, 64))}]
    assert read_sidecar(engine).build_options["profiles"] == "1x3x48x64,1x3x48x64,16x3x48x64"
    assert convert("10.3.0", request_for(batch=1), tmp_path)[0].profiles == []


def test_profiles_of_pixels_leave_the_size_open() -> None:
    profile = default_profile((-1, -1, -1, 3), 4)
    assert profile == Profile(smallest=(1, 2, 2, 3), usual=(4, 720, 1280, 3), largest=(4, 1080, 1920, 3))


@pytest.mark.parametrize(
    "text", ["", "1x3", "1,2", "axb", "4x3x48x64,2x3x48x64,1x3x48x64", "0x3x48x64", "1x3,1x3x4,1x3x4", "1x-3"]
)
def test_a_profile_that_cannot_be(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--profile"):
        convert("10.3.0", request_for(batch=None, options=EngineOptions(profiles=(Profile.parse(text),))), tmp_path)


def test_the_command_that_rebuilds() -> None:
    options = EngineOptions(workspace_mb=64, float_layers=("a/b", "c"), profiles=(Profile.parse("1x3x8x8"),))
    command = rebuild_command(
        Path("my model.onnx"), Path("m.engine"), "fp16", {"--nms": "plugin", "--dynamic": True, "--data": None}, options
    )
    assert command == (
        "boxwright export 'my model.onnx' --format tensorrt --precision fp16 --nms plugin --dynamic --workspace 64 "
        "--float-layers a/b,c --profile 1x3x8x8,1x3x8x8,1x3x8x8 --out m.engine"
    )
    assert [parse_float_layers(text) for text in ("auto", "none", "a/b,c")] == [None, (), ("a/b", "c")]


# ---- bad input: one line each ----


@pytest.mark.parametrize("version", GENERATIONS)
@pytest.mark.parametrize(
    ("record", "message"),
    [
        (Record(refused_op="AveragePool"), r"AveragePool \(layer node\): No importer registered for it"),
        (Record(starts=False), "CUDA initialization failure with error: 35; see what nvidia-smi says"),
        (Record(build_errors=["[x.cpp::f::1] Error Code 2: OutOfMemory (no further information)"]), "--workspace"),
        (Record(build_errors=["Could not find any implementation for node {X}", "second"]), "for node {X}; pass"),
    ],
    ids=["operator", "driver", "memory", "build"],
)
def test_what_fails_is_one_line(version: str, record: Record, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        convert(version, request_for(), tmp_path, record)
    assert "\n" not in str(caught.value) and "cells.onnx" in str(caught.value)
    assert not (tmp_path / "m.engine").exists() and not sidecar_path(tmp_path / "m.engine").exists()


@pytest.mark.parametrize("version", GENERATIONS)
def test_the_plugin_is_named_where_it_is_missing(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UnsupportedError, match="boxwright doctor --build-plugins"):
        convert(version, request_for(inline=False), tmp_path)


@pytest.mark.parametrize("version", GENERATIONS)
def test_the_plugin_s_node_goes_without_its_body(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_library, "require_tensorrt_plugin", lambda *_: tmp_path / "plugin.so")
    monkeypatch.setattr(tensorrt_library, "_load", lambda library, needed_for: None)
    record, engine, _ = convert(version, request_for("fp16", inline=False), tmp_path)
    assert record.model is not None and not record.model.functions
    node = next(node for node in record.model.graph.node if node.op_type == "DecodeNMS")
    assert node.name not in record.float_layers()  # a plugin has its own types
    assert read_sidecar(engine).needs_plugin


def test_float_layers_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--float-layers: expected names of nodes of cells\.onnx, got nonsense"):
        convert("10.3.0", request_for("fp16", options=EngineOptions(float_layers=("nonsense",))), tmp_path)


@pytest.mark.parametrize("version", ["8.4.3", "7.2.1", "nonsense"])
def test_a_tensorrt_that_is_too_old(version: str) -> None:
    with pytest.raises(UnsupportedError, match=r"version 8\.5 or newer"):
        limits_of(version)


def test_a_built_engine_moves_with_what_was_found_since(tmp_path: Path) -> None:
    _, engine, _ = convert("8.5.3", request_for(), tmp_path)
    target = tmp_path / "there.plan"
    manifest = replace(read_sidecar(engine).manifest, verification=AGREES)
    content = engine.read_bytes()
    move_engine(engine, target, manifest)
    assert target.read_bytes() == content and not engine.exists() and not sidecar_path(engine).exists()
    assert read_sidecar(target).manifest.verification == AGREES


def described(**changes: Any) -> EngineSidecar:
    fields: dict[str, Any] = {
        "manifest": colour_cells_manifest(),
        "tensorrt_version": "10.3.0",
        "gpu_name": "Orin",
        "compute_capability": "8.7",
        "precision": "fp16",
        "engine_sha256": "",
        "rebuild_command": "boxwright export a.onnx --format tensorrt",
    }
    return EngineSidecar(**{**fields, **changes})


@pytest.mark.parametrize(("here", "capability"), [("10.4.0", "8.7"), ("10.3.0", "9.0"), ("8.5.3.1", "7.2")])
def test_an_engine_of_another_machine_names_the_command(here: str, capability: str) -> None:
    with pytest.raises(InputError, match=r"boxwright export a\.onnx --format tensorrt"):
        check_fits_machine("m.engine", described(), tensorrt_version=here, gpu_name="X", compute_capability=capability)


# ---- half precision ----


def run(model: ir.Model, images: np.ndarray, path: Path, score_threshold: float = 0.2) -> dict[str, np.ndarray]:
    import onnxruntime

    ir.save(model, path)
    session = onnxruntime.InferenceSession(path)
    thresholds = {"score_threshold": score_threshold, "iou_threshold": 0.5}
    feeds = {"images": images} | {name: np.array(value, np.float32) for name, value in thresholds.items()}
    known = {value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())}
    names = [value.name for value in session.get_outputs()]
    feeds = {name: value for name, value in feeds.items() if name in known}
    return dict(zip(names, session.run(None, feeds), strict=True))


def test_half_precision_changes_numbers_by_its_roundings_alone(tmp_path: Path) -> None:
    graph = with_types(detector_graph()[0])
    names = half_candidates(graph)
    assert len(names) >= 4 and not any(name.startswith("decode_nms/") for name in names)
    halved, too_large = to_half(graph, names)
    assert too_large == ()
    onnx.checker.check_model(ir.to_proto(halved), full_check=True)
    assert {value.dtype for name, value in halved.graph.initializers.items() if name in ("scale", "scale/half")} == {
        ir.DataType.FLOAT16
    }
    image = colour_image((1, 1, "red"), (3, 6, "blue"))
    images = (image.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    wanted, got = run(graph, images, tmp_path / "float.onnx"), run(halved, images, tmp_path / "half.onnx")
    assert wanted["num_detections"].tolist() == [[2]]
    assert np.array_equal(got["num_detections"], wanted["num_detections"])
    np.testing.assert_allclose(got["boxes"], wanted["boxes"], atol=0.05)  # log 2 in 11 bits, times 8 pixels
    np.testing.assert_allclose(got["scores"], wanted["scores"], atol=0.005)


def test_raw_heads_stay_float32_outputs(tmp_path: Path) -> None:
    graph = with_types(detector_graph(stage="raw")[0])
    halved, _ = to_half(graph, half_candidates(graph))
    assert [(value.name, value.dtype) for value in halved.graph.outputs] == [
        ("box_regression", ir.DataType.FLOAT),
        ("class_logits", ir.DataType.FLOAT),
    ]
    images = np.random.default_rng(0).uniform(0, 1, (1, 3, HEIGHT, WIDTH)).astype(np.float32)
    wanted, got = run(graph, images, tmp_path / "float.onnx"), run(halved, images, tmp_path / "half.onnx")
    np.testing.assert_allclose(got["class_logits"], wanted["class_logits"], atol=0.02)  # logits up to 10 in 11 bits
    assert (got["class_logits"] != wanted["class_logits"]).any()  # it is half precision


def test_a_constant_too_large_for_half_precision_stays(tmp_path: Path) -> None:
    proto = colour_cells_onnx()
    for tensor in proto.graph.initializer:
        if tensor.name == "scale":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(1e6, np.float32), "scale"))
    graph = with_types(ir.from_proto(proto))
    halved, too_large = to_half(graph, half_candidates(graph))
    assert [name.split("_")[0] for name in too_large] == ["Mul"]
    onnx.checker.check_model(ir.to_proto(halved), full_check=True)


# ---- which layers must stay in float32 ----


def trial_of(bad: set[str], asked: list[frozenset[str]]) -> Callable[[frozenset[str]], VerificationRecord]:
    def trial(in_half: frozenset[str]) -> VerificationRecord:
        asked.append(in_half)
        return replace(AGREES, worst_score_difference=0.5 * len(bad & in_half))

    return trial


@pytest.mark.parametrize("bad", [set(), {17}, {3, 4, 5}, {0, 99}, {50, 51, 80}])
def test_layers_that_harm_are_found(bad: set[int]) -> None:
    names = [f"node_{index}" for index in range(100)]
    wanted, asked = {f"node_{index}" for index in bad}, []
    found = find_float_layers(names, trial_of(wanted, asked))
    assert wanted <= set(found)
    assert len(found) <= 6 * len(bad)  # no more than pieces around them
    assert len(asked) <= 1 + 12 + 5 + 3 * max(1, len(bad))


def test_where_float32_does_not_help_either() -> None:
    with pytest.raises(VerificationError, match="even with all of its layers in float32"):
        find_float_layers(["a", "b"], lambda names: DIFFERS)


def test_found_layers_are_held(tmp_path: Path) -> None:
    """The whole way: the graph in half precision is compared, and what harms stays in float32."""
    names = half_candidates(with_types(detector_graph()[0]))
    harmful = next(str(node.name) for node in with_types(detector_graph()[0]).graph if node.op_type == "Mul")
    assert harmful in names
    tried: list[Path] = []

    def compare(path: Path) -> VerificationRecord:
        tried.append(path)
        model = onnx.load(path)
        node = next(node for node in model.graph.node if node.name == harmful)
        in_half = any(name.endswith("/half") for name in node.input) or "scale/half" in node.input
        return DIFFERS if in_half else AGREES

    for version in ("8.6.1", "11.1.0"):
        record, engine, _ = convert(version, request_for("fp16", compare=compare), tmp_path)
        held = read_sidecar(engine).build_options["layers in float32"].split(", ")
        assert harmful in held and len(held) < len(names)
        assert (harmful in record.float_layers()) == (version in EIGHT)
    assert len(tried) >= 4


def test_the_module_has_what_the_fake_is_made_of() -> None:
    module: ModuleType = fake_builder_module("11.1.0", Record())
    assert not hasattr(module.BuilderFlag, "FP16")
    with pytest.raises(AttributeError):
        module.ILayer("a", 0, [], []).precision = 0
