"""From ONNX to a TensorRT engine, and `<engine>.manifest.json` beside it that says what it is for.

    graph -> [float16 where it may be] -> as the parser wants it -> engine

Up to TensorRT 10 an engine may choose the precision of layers by itself (weak typing); where the types of the graph can
decide (from 10 on), they do. INT8 comes from a calibrated file, whose Q/DQ nodes every version reads, or up to
TensorRT 10 from TensorRT's own calibrator.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import onnx_ir as ir

from boxwright.core.errors import InputError, UnsupportedError
from boxwright.core.files import atomic_file
from boxwright.core.manifest import Manifest, Precision
from boxwright.export.half_precision import half_candidates, to_half, with_types
from boxwright.export.onnx_files import INPUT_NAME, write_onnx
from boxwright.export.tensorrt_api import BuilderApi
from boxwright.export.tensorrt_builder import BuildTask, build
from boxwright.export.tensorrt_calibration import ImageBatches
from boxwright.export.tensorrt_graph import for_parser, has_decode_nms, node_table
from boxwright.export.tensorrt_half import choose_half_nodes, half_rule
from boxwright.export.tensorrt_options import EngineOptions, Profile
from boxwright.export.tensorrt_request import BuildMachine, EngineRequest, Report
from boxwright.export.thresholds import threshold_defaults
from boxwright.runtimes.engine_sidecar import EngineSidecar, read_sidecar, sidecar_path, write_sidecar
from boxwright.runtimes.tensorrt_library import load_plugins

ENGINE_SUFFIXES = (".engine", ".plan")
# What a builder that chooses by itself may use.
_BESIDE_FLOAT: dict[str, tuple[str, ...]] = {"fp16": ("fp16",), "int8": ("fp16", "int8")}


def convert_to_tensorrt(
    machine: BuildMachine, request: EngineRequest, engine: Path, work: Path, report: Report
) -> Manifest:
    """Build an engine and write it with its description.

    Args:
        machine: to build on.
        request: what to build.
        engine: file to write.
        work: folder for files that last as long as the export.
        report: told in a few words what is being done.

    Returns:
        The manifest of the engine.

    Raises:
        UnsupportedError: where TensorRT cannot read or build the graph.
        InputError: where an option does not fit it.
        VerificationError: where no choice of layers in half precision detects what the source detects.
    """
    api = machine.api
    request = replace(request, graph=with_types(request.graph))
    is_quantized = request.manifest.precision == "int8"
    precision = cast("Precision", "int8" if is_quantized else request.precision)
    _check_precision(request, precision, is_quantized, api)
    load_plugins(api.trt, decode_nms=has_decode_nms(request.graph), needed_for=request.source)
    calibrates = precision == "int8" and not is_quantized
    typing = api.typing(needs_weak=calibrates or request.options.dla_core is not None)
    half = choose_half_nodes(request, precision, typing.is_strong, work, report)
    typed = to_half(request.graph, half)[0] if typing.is_strong and half else request.graph
    is_fixed = request.options.fixed_thresholds
    parsed = for_parser(typed, api.limits, source=request.source, fixed_thresholds=is_fixed)
    onnx_path = work / "for_tensorrt.onnx"
    write_onnx(parsed, onnx_path)
    chooses = not typing.is_strong and precision != "fp32"
    batches = _batches(machine, request) if calibrates else None
    task = BuildTask(
        onnx_path=onnx_path,
        nodes=node_table(parsed),
        source=request.source,
        precisions=_BESIDE_FLOAT[precision] if chooses else (),
        typing=typing,
        may_be_half=half_rule(request.graph, half) if chooses else None,
        batches=batches,
        batch=request.batch,
        options=request.options,
    )
    try:
        content, profiles = build(api, task, _phase_reporter(report))
    finally:
        if batches is not None:
            batches.close()
    sidecar = _described(machine, request, precision, content, profiles, half)
    sidecar = replace(sidecar, batch_sizes=_batch_sizes(profiles, parsed))
    # The description first: an engine beside that of another is told by its checksum, one without any is not.
    write_sidecar(engine, sidecar)
    with atomic_file(engine) as temporary:
        temporary.write_bytes(content)
    return sidecar.manifest


def _batch_sizes(profiles: Sequence[Profile], graph: ir.Model) -> tuple[int, int]:
    """The smallest and the largest batch; without a profile all sizes are fixed."""
    if profiles:
        return min(profile.smallest[0] for profile in profiles), max(profile.largest[0] for profile in profiles)
    (images,) = (value for value in graph.graph.inputs if value.name == INPUT_NAME)
    assert images.shape is not None
    batch = images.shape[0]
    assert isinstance(batch, int)
    return batch, batch


def move_engine(built: Path, engine: Path, manifest: Manifest) -> None:
    """Put an engine in its place, its description with what became known since it was built.

    Args:
        built: on the same file system.
        engine: where it shall be.
        manifest: of the engine.
    """
    write_sidecar(engine, replace(read_sidecar(built), manifest=manifest))
    os.replace(built, engine)
    sidecar_path(built).unlink()


def rebuild_command(
    source: Path,
    out: Path,
    precision: str,
    given: Mapping[str, Any],
    options: EngineOptions,
    *,
    format: tuple[str, ...] = ("tensorrt",),
) -> str:
    """The command line that makes an engine.

    Args:
        source: of the export.
        out: to write.
        precision: of the engine.
        given: further options by name; those without a value are left out, True is an option without one.
        options: of the engine.
        format: what is written, and options that say more of it.
    """
    words = ["boxwright", "export", str(source), "--format", *format, "--precision", precision]
    for name, value in given.items():
        if value is True:
            words.append(name)
        elif value is not None and value is not False:
            words += [name, str(value)]
    return shlex.join([*words, *options.arguments(), "--out", str(out)])


def _check_precision(request: EngineRequest, precision: str, is_quantized: bool, api: BuilderApi) -> None:
    if is_quantized:
        _check_quantization(request.graph, request.source)
    elif precision == "int8" and not api.has_calibrators:
        raise UnsupportedError(
            "--precision int8",
            expected=f"a calibrated file: TensorRT {api.trt.__version__} has no calibrators of its own",
            got=f"{request.source} in {request.manifest.precision}",
            fix="run first: boxwright calibrate MODEL.onnx --data DIR --engine tensorrt",
        )
    elif precision == "int8" and request.manifest.input_kind == "pixels":
        raise UnsupportedError(
            "--precision int8",
            expected="a graph that takes tensors, to calibrate",
            got="one that takes pixels",
            fix="export it without --embed-preprocess",
        )
    if request.options.dla_core is not None and precision == "fp32":
        raise InputError(
            "--dla-core", expected="--precision fp16 or int8, which it knows alone", got="fp32", fix="pass one"
        )


def _check_quantization(graph: ir.Model, source: str) -> None:
    """TensorRT takes int8 without zero points."""
    for node in graph.graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.inputs) < 3 or node.inputs[2] is None:
            continue
        zero = ir.convenience.get_const_tensor(node.inputs[2])
        if zero is not None and zero.dtype in (ir.DataType.INT32, ir.DataType.INT8) and not zero.numpy().any():
            continue
        got = "a zero point that is computed" if zero is None else f"{zero.dtype.name.lower()} with a zero point"
        raise UnsupportedError(
            f"{source}: layer {node.name}",
            expected="INT8 as TensorRT takes it: int8, all zero points 0",
            got=got,
            fix="calibrate the float model with: boxwright calibrate MODEL.onnx --data DIR --engine tensorrt",
        )


def _batches(machine: BuildMachine, request: EngineRequest) -> ImageBatches:
    cache = request.options.calibration_cache
    has_cache = cache is not None and cache.is_file()
    batch_size = min(request.batch, max(1, len(request.images)))
    return ImageBatches(
        () if has_cache else request.images,
        request.manifest,
        batch_size=batch_size,
        cuda=None if has_cache else machine.cuda,
        cache=cache,
    )


def _phase_reporter(report: Report) -> Callable[[str, int, int], None]:
    def on_phase(phase: str, step: int, num_steps: int) -> None:
        report(phase if num_steps == 0 else f"{phase} ({step} of {num_steps})")

    return on_phase


def _described(
    machine: BuildMachine,
    request: EngineRequest,
    precision: Precision,
    content: bytes,
    profiles: Sequence[Profile],
    half: frozenset[str],
) -> EngineSidecar:
    """What lies beside the engine."""
    options = request.options
    in_float = [name for name in half_candidates(request.graph) if name not in half]
    words = {
        "workspace": "TensorRT's own limit" if options.workspace_mb is None else f"{options.workspace_mb} MiB",
        "profiles": "; ".join(map(str, profiles)) or "fixed shapes",
        # Beyond those that always do.
        "layers in float32": (", ".join(in_float) or "none of the network") if half else "all that are not INT8",
    }
    for name, file in (("timing cache", options.timing_cache), ("calibration cache", options.calibration_cache)):
        if file is not None:
            words[name] = file.name
    return EngineSidecar(
        manifest=replace(request.manifest, precision=precision),
        tensorrt_version=str(machine.api.trt.__version__),
        gpu_name=machine.device.name,
        compute_capability=machine.device.compute_capability,
        precision=precision,
        engine_sha256=hashlib.sha256(content).hexdigest(),
        rebuild_command=request.rebuild_command,
        needs_plugin=has_decode_nms(request.graph),
        dla_core=options.dla_core,
        fixed_thresholds=threshold_defaults(request.graph) if options.fixed_thresholds else {},
        build_options=words,
    )
