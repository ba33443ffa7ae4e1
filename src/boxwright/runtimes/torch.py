"""PyTorch: the reference that exported files are held to."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from boxwright.core.errors import UnsupportedError
from boxwright.core.manifest import Manifest
from boxwright.runtimes.backend import TensorSpec, check_inputs, closed_error
from boxwright.runtimes.synchronous import SynchronousBackend

if TYPE_CHECKING:
    import torch

SUFFIXES = (".pth", ".pt", ".ckpt")


def available() -> str | None:
    """None where the engine is installed, else what is missing."""
    return None if importlib.util.find_spec("torch") is not None else "the package torch is not installed"


class TorchBackend(SynchronousBackend):
    """A module in evaluation mode; see `boxwright.runtimes.backend.Backend`.

    Its outputs are the raw heads that the module returns by name; names with a leading underscore are the loss's
    business and left out.
    """

    name = "torch"
    precision = "fp32"

    def __init__(self, module: torch.nn.Module, manifest: Manifest, *, device: str = "cpu") -> None:
        super().__init__()
        self.device = device
        self.manifest_json: str | None = manifest.to_json()
        self._module: torch.nn.Module | None = _moved(module, device).eval()
        height, width = manifest.preprocess.size_hw or (None, None)
        images = TensorSpec(shape=(None, 3, height, width), dtype=np.dtype(np.float32))
        self.inputs = {"images": images}
        if manifest.preprocess.pixel_mask:
            self.inputs["pixel_mask"] = TensorSpec(shape=(None, height, width), dtype=np.dtype(np.int64))
        self.outputs = _head_specs(manifest)

    @classmethod
    def from_module(cls, module: torch.nn.Module, manifest: Manifest, *, device: str = "cpu") -> TorchBackend:
        """Wrap a module, which is put into evaluation mode on that device.

        Args:
            module: returns the raw heads, by name, of images (B, 3, H, W).
            manifest: of the module, at stage `raw`.
            device: as PyTorch names it.

        Raises:
            UnsupportedError: where PyTorch has no such device here.
        """
        return cls(module, manifest, device=device)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        precision: str | None = None,
        num_threads: int = 0,
    ) -> TorchBackend:
        """Refuse: a checkpoint holds weights, and the module they belong to comes from `boxwright.load_model`.

        Raises:
            UnsupportedError: always, with the way to go.
        """
        raise UnsupportedError(
            str(path),
            expected="an exported model (ONNX, OpenVINO)",
            got="a training checkpoint",
            fix="run 'boxwright export' on it, or in Python use load_model and TorchBackend.from_module",
        )

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the module once; see `Backend.run`."""
        import torch

        if self._module is None:
            raise closed_error("PyTorch")
        check_inputs(self.inputs, inputs)
        with torch.inference_mode():
            tensors = [torch.from_numpy(np.ascontiguousarray(inputs[name])).to(self.device) for name in self.inputs]
            heads = self._module(*tensors)
            return {name: tensor.cpu().numpy() for name, tensor in heads.items() if not name.startswith("_")}

    def close(self) -> None:
        """Let the module go; see `Backend.close`."""
        super().close()
        self._module = None


BACKEND = TorchBackend


def _moved(module: torch.nn.Module, device: str) -> torch.nn.Module:
    try:
        return module.to(device)
    except (RuntimeError, AssertionError, ValueError) as error:  # PyTorch raises any of them
        raise UnsupportedError(
            "device", expected="a device that PyTorch has here", got=repr(device), fix="pass cpu"
        ) from error


def _head_specs(manifest: Manifest) -> dict[str, TensorSpec]:
    """The raw heads that every module has; some give `priors` and `image_size_hw` too."""
    float32 = np.dtype(np.float32)
    specs = {
        "box_regression": TensorSpec(shape=(None, None, None), dtype=float32),
        "class_logits": TensorSpec(shape=(None, None, manifest.decode.num_logits), dtype=float32),
    }
    if manifest.decode.has_objectness:
        specs["objectness"] = TensorSpec(shape=(None, None), dtype=float32)
    return specs
