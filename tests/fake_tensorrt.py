"""A tensorrt for tests that runs "engines" on `FakeCuda`, and takes it ill when it is used otherwise than the real one.

An engine file is a description in JSON and the name of a numpy function. The classes have the members of the recorded
generations alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.machinery
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxwright.core.decode_spec import Boxes
from boxwright.core.manifest import Manifest
from boxwright.core.preprocess import Preprocess
from boxwright.runtimes.engine_sidecar import EngineSidecar, write_sidecar
from fake_cuda import ALIGNMENT, FakeCuda
from recorded_tensorrt import recorded_module

Arrays = dict[str, NDArray[Any]]
SIZE_HW = (24, 40)
MOST_DETECTIONS = 5
MAGIC = b"an engine for tests "
_NUMPY = {"FLOAT": np.float32, "INT32": np.int32, "HALF": np.float16, "UINT8": np.uint8}


def bright_spots(inputs: Arrays) -> Arrays:
    """One box an image over its left upper quarter, whose score is the mean of it; as DecodeNMS gives it."""
    images, threshold = inputs["images"], inputs["score_threshold"]
    num_images = len(images)
    scores = np.zeros((num_images, MOST_DETECTIONS), dtype=np.float32)
    boxes = np.zeros((num_images, MOST_DETECTIONS, 4), dtype=np.float32)
    class_ids = np.full((num_images, MOST_DETECTIONS), -1, dtype=np.int32)
    means = images[:, :, : SIZE_HW[0] // 2, : SIZE_HW[1] // 2].mean(axis=(1, 2, 3)) / 255
    found = means > threshold
    scores[found, 0] = means[found]
    boxes[found, 0] = (0, 0, SIZE_HW[1] // 2, SIZE_HW[0] // 2)
    class_ids[found, 0] = 1
    counts = found.astype(np.int32)[:, None]
    return {"num_detections": counts, "boxes": boxes, "scores": scores, "class_ids": class_ids}


def bright_spots_fixed(inputs: Arrays) -> Arrays:
    """The same with a threshold built in."""
    return bright_spots({**inputs, "score_threshold": np.array(0.001, dtype=np.float32)})


def above_threshold(inputs: Arrays) -> Arrays:
    """All numbers above a threshold, as many as there are."""
    return {"found": inputs["images"][inputs["images"] > inputs["score_threshold"]]}


FUNCTIONS: dict[str, Callable[[Arrays], Arrays]] = {
    "bright_spots": bright_spots,
    "bright_spots_fixed": bright_spots_fixed,
    "above_threshold": above_threshold,
}


def engine_description(*, batch: int | None = 1, most: int = 3, **changes: Any) -> dict[str, Any]:
    """An engine that finds bright spots; with `batch` None it takes 1 to `most` images."""
    b = -1 if batch is None else batch
    images = [b, 3, *SIZE_HW]
    limits = [[size, *images[1:]] for size in (1, 1, most)]
    description = {
        "inputs": {"images": [images, "FLOAT"], "score_threshold": [[], "FLOAT"], "iou_threshold": [[1], "FLOAT"]},
        "outputs": {
            "num_detections": [[b, 1], "INT32"],
            "boxes": [[b, MOST_DETECTIONS, 4], "FLOAT"],
            "scores": [[b, MOST_DETECTIONS], "FLOAT"],
            "class_ids": [[b, MOST_DETECTIONS], "INT32"],
        },
        "profiles": [{"images": limits}],
        "function": "bright_spots",
        "host": [],
        "formats": {},
        "can_be_recorded": True,
        "needs_plugin": False,
    }
    return description | changes


def engine_bytes(description: dict[str, Any]) -> bytes:
    """The content of an engine file."""
    return MAGIC + json.dumps(description).encode()


def make_manifest() -> Manifest:
    """Of the engines here."""
    return Manifest(
        family="spots",
        variant="bright-spots",
        class_names=("dark", "bright"),
        preprocess=Preprocess(size_hw=SIZE_HW, resize="stretch", channel_order="BGR", scale=1.0),
        decode=Boxes(num_classes=2, score_activation="none", max_detections=MOST_DETECTIONS),
        stage="detections",
        precision="fp16",
    )


def make_sidecar(content: bytes = b"", **changes: Any) -> EngineSidecar:
    """Of an engine for the GPU that `FakeCuda` has."""
    sidecar = EngineSidecar(
        manifest=make_manifest(),
        tensorrt_version="10.3.0",
        gpu_name="NVIDIA L4",
        compute_capability="8.9",
        precision="fp16",
        engine_sha256=hashlib.sha256(content).hexdigest(),
        rebuild_command="boxwright export m.onnx --format tensorrt --precision fp16",
    )
    return dataclasses.replace(sidecar, **changes)


def write_engine(path: Path, description: dict[str, Any], **changes: Any) -> Path:
    """An engine file with its sidecar."""
    content = engine_bytes(description)
    path.write_bytes(content)
    write_sidecar(path, make_sidecar(content, **changes))
    return path


def make_tensorrt(version: str, cuda: FakeCuda) -> ModuleType:
    """The module `tensorrt` of a generation; `module.plugins` are those that it knows, `module.executions` counts."""
    shares_profiles = int(version.split(".")[0]) >= 10
    log: list[Any] = []

    def complain(message: str) -> None:
        log[-1].log(module.ILogger.Severity.ERROR, message)

    class Runtime:
        DLA_core = -1
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            log.append(logger)

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            if not serialized_engine.startswith(MAGIC):
                complain("1: [stdArchiveReader.cpp::StdArchiveReader::30] Error Code 1: Serialization (Magic tag)")
                complain("4: [runtime.cpp::deserializeCudaEngine::66] Error Code 4: Internal Error (failed.)")
                return None
            description = json.loads(serialized_engine[len(MAGIC) :])
            if description["needs_plugin"] and "DecodeNMS" not in module.plugins:
                complain("1: [pluginV2Runner.cpp::load::300] Could not find plugin: DecodeNMS version: 1")
                return None
            if module.failing == "deserialize":
                complain("2: [executionContext.cpp] Requested amount of GPU memory could not be allocated.")
                return None
            return module.ICudaEngine(description)

    class ICudaEngine:
        def __init__(self, description: dict[str, Any]) -> None:
            self._description = description
            self._tensors = description["inputs"] | description["outputs"]
            self._contexts: weakref.WeakSet[Any] = weakref.WeakSet()

        @property
        def num_io_tensors(self) -> int:
            return len(self._tensors)

        @property
        def num_optimization_profiles(self) -> int:
            return len(self._description["profiles"])

        def get_tensor_name(self, index: int) -> str:
            return list(self._tensors)[index]

        def get_tensor_mode(self, name: str) -> Any:
            return module.TensorIOMode.INPUT if name in self._description["inputs"] else module.TensorIOMode.OUTPUT

        def get_tensor_location(self, name: str) -> Any:
            return module.TensorLocation.HOST if name in self._description["host"] else module.TensorLocation.DEVICE

        def get_tensor_shape(self, name: str) -> list[int]:
            return list(self._tensors[name][0])

        def get_tensor_dtype(self, name: str) -> Any:
            return module.DataType[self._tensors[name][1]]

        def get_tensor_format(self, name: str) -> Any:
            return module.TensorFormat[self._description["formats"].get(name, "LINEAR")]

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
            limits: list[list[int]] = self._description["profiles"][profile_index][name]
            return limits

        def create_execution_context(self) -> Any:
            if module.failing == "context":
                complain("[executionContext.cpp::ExecutionContext::443] Error Code 2: OutOfMemory (no memory)")
                return None
            context = module.IExecutionContext(self)
            self._contexts.add(context)
            return context

    class IExecutionContext:
        def __init__(self, engine: Any) -> None:
            self._engine = engine
            self._is_open = any(-1 in shape for shape, _ in engine._description["inputs"].values())
            taken = self._is_open and len(engine._contexts) > 0 and not shares_profiles
            self._profile = -1 if taken else 0
            self._shapes = {name: shape for name, (shape, _) in engine._description["inputs"].items()}
            self._addresses: dict[str, int] = {}
            self._allocators: dict[str, Any] = {}
            self._version = 0
            self._version_run = -1

        @property
        def active_optimization_profile(self) -> int:
            return self._profile

        def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
            others = [other._profile for other in self._engine._contexts if other is not self]
            if not shares_profiles and profile_index in others:
                complain("Profile 0 has been chosen by another IExecutionContext. Use another profileIndex")
                return False
            self._version += 1
            self._profile = profile_index
            return True

        def set_input_shape(self, name: str, shape: Any) -> bool:
            limits = self._engine._description["profiles"][self._profile].get(name)
            wanted = self._engine._description["inputs"][name][0]
            fits = list(shape) == wanted if limits is None or -1 not in wanted else True
            if limits is not None and -1 in wanted:
                fits = all(a <= b <= c for a, b, c in zip(limits[0], shape, limits[2], strict=True))
            if not fits:
                complain("Static dimension mismatch while setting input shape.")
                return False
            self._version += 1
            self._shapes[name] = list(shape)
            return True

        def set_tensor_address(self, name: str, memory: int) -> bool:
            assert memory % ALIGNMENT == 0 or name in self._engine._description["host"]
            self._version += 1
            self._addresses[name] = memory
            return True

        def set_output_allocator(self, name: str, output_allocator: Any) -> bool:
            self._allocators[name] = output_allocator
            return True

        def infer_shapes(self) -> list[str]:
            host = self._engine._description["host"]
            return [
                name
                for name, shape in self._shapes.items()
                if -1 in shape or (name in host and name not in self._addresses)
            ]

        def get_tensor_shape(self, name: str) -> list[int]:
            if name in self._shapes:
                return self._shapes[name]
            shape = self._engine._description["outputs"][name][0]
            batch = self._shapes["images"][0]
            return [batch if size == -1 and place == 0 and len(shape) > 1 else size for place, size in enumerate(shape)]

        def execute_async_v3(self, stream_handle: int) -> bool:
            module.executions += 1
            is_recorded = stream_handle in cuda.recordings
            can = self._engine._description["can_be_recorded"] and self._version_run == self._version
            if is_recorded and not can:
                cuda.broken_recordings.add(stream_handle)
                complain("[defaultAllocator.cpp] Error Code 1: Cuda Runtime (operation not permitted when capturing)")
                return False
            if module.failing == "execute":
                complain("[enqueue.cpp] Error Code 1: Cuda Runtime (an illegal memory access was encountered)")
                return False
            self._version_run = version = self._version
            addresses, shapes = dict(self._addresses), dict(self._shapes)
            if self._allocators:
                cuda.drain(stream_handle)
                return self._run_to_allocators(addresses, shapes)

            def work() -> None:
                assert self._version == version, "a context was changed after it had been recorded"
                for name, array in self._compute(addresses, shapes).items():
                    cuda.view("device", addresses[name], array.nbytes)[:] = np.frombuffer(array.tobytes(), np.uint8)

            cuda.enqueue(stream_handle, work)
            return True

        def _compute(self, addresses: dict[str, int], shapes: dict[str, Any]) -> Arrays:
            inputs = {}
            for name, (_, data_type) in self._engine._description["inputs"].items():
                dtype = np.dtype(_NUMPY[data_type])
                side = "host" if name in self._engine._description["host"] else "device"
                size = int(np.prod(shapes[name], dtype=np.int64)) * dtype.itemsize
                content = cuda.view(side, addresses[name], size)
                inputs[name] = np.frombuffer(content.tobytes(), dtype).reshape(shapes[name])
            return FUNCTIONS[self._engine._description["function"]](inputs)

        def _run_to_allocators(self, addresses: dict[str, int], shapes: dict[str, Any]) -> bool:
            for name, array in self._compute(addresses, shapes).items():
                allocator = self._allocators[name]
                ask = allocator.reallocate_output_async if shares_profiles else allocator.reallocate_output
                address = ask(name, 0, array.nbytes, ALIGNMENT, *([0] if shares_profiles else []))
                if not address:
                    complain("[runner.cpp] Error Code 2: OutOfMemory")
                    return False
                allocator.notify_shape(name, list(array.shape))
                cuda.view("device", address, array.nbytes)[:] = np.frombuffer(array.tobytes(), np.uint8)
            return True

    module: Any = recorded_module(
        version,
        {"Runtime": Runtime, "ICudaEngine": ICudaEngine, "IExecutionContext": IExecutionContext},
        {"init_libnvinfer_plugins": lambda logger, namespace: True},
    )
    module.plugins, module.executions, module.failing = set(), 0, ""
    module.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    return module
