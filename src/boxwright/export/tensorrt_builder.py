"""Building an engine: an ONNX file that the parser reads, the builder's settings, and what it says when it fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxwright.core.errors import InputError, UnsupportedError
from boxwright.core.files import atomic_file
from boxwright.export.tensorrt_api import Batches, BuilderApi, MayBeHalf, OnPhase, StrongTyping, WeakTyping
from boxwright.export.tensorrt_options import EngineOptions, Profile, check_profile, default_profile
from boxwright.runtimes.tensorrt_library import tensorrt_log

INPUT_NAME = "images"
_MEBIBYTE = 1 << 20
_OWN_TACTICS = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")  # of TensorRT itself, in every generation
_MEMORY_WORDS = (
    "outofmemory",
    "out of memory",
    "insufficient memory",
    "failed to allocate",
    "cuda_error_out_of_memory",
)


@dataclass(frozen=True, kw_only=True)
class BuildTask:
    """What is to be built.

    Attributes:
        onnx_path: a graph for the parser.
        nodes: name and operator of each node of it.
        source: named in errors.
        precisions: allowed beside float32, in a weakly typed network.
        typing: of the network.
        may_be_half: whether a layer may compute in half precision, in a weakly typed network; None where all are in
            float32.
        batches: for a calibrator; None without.
        batch: that the engine is to be fastest at, where the batch is open.
        options: of the engine.
    """

    onnx_path: Path
    nodes: Sequence[tuple[str, str]]
    source: str
    precisions: tuple[str, ...]
    typing: WeakTyping | StrongTyping
    may_be_half: MayBeHalf | None
    batches: Batches | None
    batch: int
    options: EngineOptions


def build(api: BuilderApi, task: BuildTask, on_phase: OnPhase) -> tuple[bytes, tuple[Profile, ...]]:
    """Build an engine on the selected GPU.

    Args:
        api: the generation's ways.
        task: what is to be built.
        on_phase: told what the builder does.

    Returns:
        The engine's bytes, and the shapes that it takes; none where they are fixed.

    Raises:
        UnsupportedError: where TensorRT cannot read or build it, or its memory is too small.
        InputError: where the options do not fit the graph.
    """
    trt, log = api.trt, tensorrt_log(api.trt)
    builder = _created(lambda: trt.Builder(log), api, task)
    network = _created(lambda: builder.create_network(task.typing.network_flags(trt)), api, task)
    parser = trt.OnnxParser(network, log)
    log.errors.clear()
    if not parser.parse_from_file(str(task.onnx_path)):
        raise _parse_error(api, parser, task)
    config = builder.create_builder_config()
    _set_limits(api, builder, config, task)
    profiles = _add_profiles(builder, network, config, task)
    task.typing.allow(trt, config, task.precisions)
    if task.may_be_half is not None:
        task.typing.hold_in_float(trt, config, network, task.may_be_half)
    if task.batches is not None:
        config.int8_calibrator = api.calibrators.calibrator(trt, task.batches)
        if profiles:
            config.set_calibration_profile(_profile_of(builder, profiles[0]))
    cache = _read_timing_cache(config, task.options.timing_cache)
    api.progress.attach(trt, config, on_phase)
    log.errors.clear()
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise _build_error(log.errors.lines, task)
    if task.options.timing_cache is not None and cache is not None:
        with atomic_file(task.options.timing_cache) as temporary:
            temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(serialized), profiles


def _created(make: Callable[[], Any], api: BuilderApi, task: BuildTask) -> Any:
    """What TensorRT makes; its binding raises a TypeError without a word where it cannot."""
    log = tensorrt_log(api.trt)
    log.errors.clear()
    try:
        made = make()
    except (TypeError, RuntimeError) as error:
        raise _no_start(task, log.errors.cause) from error
    if made is None:
        raise _no_start(task, log.errors.cause)
    return made


def _no_start(task: BuildTask, cause: str) -> UnsupportedError:
    return UnsupportedError(
        f"TensorRT engine of {task.source}",
        expected="a TensorRT builder that starts",
        got=cause,
        fix="see what nvidia-smi says of the driver and the GPU",
    )


def _set_limits(api: BuilderApi, builder: Any, config: Any, task: BuildTask) -> None:
    trt, options = api.trt, task.options
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb * _MEBIBYTE)
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is float32: TF32 has the mantissa of half precision
    if options.without_cudnn:
        config.set_tactic_sources(sum(1 << int(getattr(trt.TacticSource, name)) for name in _OWN_TACTICS))
    if options.dla_core is not None:
        if options.dla_core >= builder.num_DLA_cores:
            raise UnsupportedError(
                "--dla-core",
                expected=f"one of the {builder.num_DLA_cores} DLA cores of this machine",
                got=str(options.dla_core),
                fix="leave it out, or build on a Jetson that has one",
            )
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = options.dla_core
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _add_profiles(builder: Any, network: Any, config: Any, task: BuildTask) -> tuple[Profile, ...]:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shape = next(tuple(value.shape) for value in inputs if value.name == INPUT_NAME)
    if all(size >= 0 for size in shape):
        if task.options.profiles:
            check_profile(task.options.profiles[0], shape)
        return ()
    profiles = task.options.profiles or (default_profile(shape, task.batch),)
    for profile in profiles:
        check_profile(profile, shape)
        if config.add_optimization_profile(_profile_of(builder, profile)) < 0:
            raise InputError(
                "--profile", expected="shapes that the graph can have", got=str(profile), fix="pass others"
            )
    return tuple(profiles)


def _profile_of(builder: Any, profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    made.set_shape(INPUT_NAME, profile.smallest, profile.usual, profile.largest)
    return made


def _read_timing_cache(config: Any, path: Path | None) -> Any:
    """Give the builder what was measured before, or an empty cache to fill; None where none is wanted."""
    if path is None:
        return None
    content = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(content)
    # One of another GPU or version is not taken: then the builder starts anew, and the file is replaced.
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _parse_error(api: BuilderApi, parser: Any, task: BuildTask) -> UnsupportedError:
    """The operator and the layer that the parser stumbled over."""
    complaints = api.complaints(parser, task.nodes)
    named = next((complaint for complaint in complaints if complaint.op_type), None)
    complaint = named or next(iter(complaints), None)
    cause = tensorrt_log(api.trt).errors.cause if complaint is None else complaint.reason
    where = "" if named is None else f"{named.op_type} (layer {named.node_name}): "
    return UnsupportedError(
        task.source,
        expected=f"operators that TensorRT {api.trt.__version__} reads",
        got=f"{where}{cause}"[:400],
        fix="export with --nms none where the layer is of the NMS, or use a newer TensorRT",
    )


def _build_error(lines: Sequence[str], task: BuildTask) -> UnsupportedError:
    cause = lines[0] if lines else "an error without a message"
    memory = next((line for line in lines if any(word in line.lower() for word in _MEMORY_WORDS)), None)
    if memory is not None:
        return UnsupportedError(
            f"TensorRT engine of {task.source}",
            expected="a GPU with enough free memory",
            got=memory[:300],
            fix="close other programs on the GPU, or pass a smaller --workspace, --batch or --profile",
        )
    return UnsupportedError(
        f"TensorRT engine of {task.source}",
        expected="a network that TensorRT can build",
        got=cause[:300],
        fix="pass a larger --workspace or --float-layers none, or export with another --nms",
    )
