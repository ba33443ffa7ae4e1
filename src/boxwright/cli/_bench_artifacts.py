"""The files that a benchmark's matrix needs and does not have: exported, converted and quantized once, then kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boxwright
from boxwright.core.errors import MissingDependencyError
from boxwright.core.files import write_text

# Told in a few words what is being made.
OnNote = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What an author's file does not say of itself; as `boxwright export` takes it.

    Attributes:
        variant: of a checkpoint.
        head: of a foreign ONNX file.
        labels: what `load_labels` takes.
        preprocess: name of a preset.
    """

    variant: str | None = None
    head: str | None = None
    labels: str | None = None
    preprocess: str | None = None


class ArtifactCache:
    """Makes artifacts in a folder named by what they are made of; what is there is used again."""

    def __init__(self, folder: Path, data: Path, *, on_note: OnNote) -> None:
        """Use a folder.

        Args:
            folder: made where it is not there.
            data: data set that exports are compared on and INT8 files are calibrated with.
            on_note: told of what is made.
        """
        self._folder = folder
        self._data = data
        self._on_note = on_note

    def onnx(self, source: Path, options: SourceOptions, size_hw: tuple[int, int] | None) -> Path:
        """The source as an ONNX file with decoding and NMS inside.

        Raises:
            BoxwrightError: where it cannot be exported.
        """
        recipe = {
            "kind": "onnx",
            "variant": options.variant,
            "head": options.head,
            "labels": _labels_content(options.labels),
            "preprocess": options.preprocess,
            "size_hw": size_hw,
        }
        target = self._place(source, recipe, f"{source.stem}.onnx")
        if not target.exists():
            size = f" at {size_hw[0]}x{size_hw[1]}" if size_hw else ""
            self._on_note(f"exporting {source.name}{size} to ONNX")
            _export(source, target, options, {"size_hw": size_hw})
        return target

    def ultralytics(self, source: Path) -> Path:
        """What Ultralytics exported, adopted: an ONNX file, or a folder with an OpenVINO model.

        Raises:
            BoxwrightError: where it cannot be adopted.
        """
        from boxwright.bench import ultralytics

        if source.is_dir():
            target = self._place(source, {"kind": "ultralytics"}, source.name)
            if not target.exists():
                self._on_note(f"adopting {source.name}")
                ultralytics.adopt_openvino_folder(source, target)
            return target
        description = ultralytics.read_onnx(source)
        labels = self._place(source, {"kind": "labels"}, "labels.txt")
        write_text(labels, "\n".join(description.class_names) + "\n")
        options = SourceOptions(head=ultralytics.HEAD, labels=str(labels), preprocess=ultralytics.PREPROCESS)
        return self.onnx(source, options, None)

    def openvino(self, onnx_path: Path) -> Path:
        """An ONNX file of ours as an OpenVINO model.

        Raises:
            BoxwrightError: where it cannot be converted.
        """
        target = self._place(onnx_path, {"kind": "openvino"}, f"{onnx_path.stem}_openvino_model")
        if not target.exists():
            self._on_note(f"converting {onnx_path.name} to OpenVINO")
            _export(onnx_path, target, SourceOptions(), {"format": "openvino"})
        return target

    def tensorrt(self, onnx_path: Path, precision: str) -> Path:
        """An ONNX file of ours as a TensorRT engine, which is good for this machine alone.

        Raises:
            BoxwrightError: where it cannot be built.
        """
        from importlib.metadata import version

        from boxwright.core.machine import describe_machine

        gpus = [f"{gpu.name} {gpu.driver_version}" for gpu in describe_machine().gpus]
        recipe = {"kind": "tensorrt", "precision": precision, "version": version("tensorrt"), "gpus": gpus}
        target = self._place(onnx_path, recipe, f"{onnx_path.stem}.engine")
        if not target.exists():
            self._on_note(f"building a TensorRT engine in {precision} from {onnx_path.name}")
            _export(onnx_path, target, SourceOptions(), {"format": "tensorrt", "precision": precision})
        return target

    def int8(self, onnx_path: Path, *, engine: str, split: str) -> Path:
        """An ONNX file of ours in INT8, calibrated on a split of the data set.

        Raises:
            BoxwrightError: where it cannot be calibrated.
        """
        recipe = {"kind": "int8", "engine": engine, "split": split, "data": self._calibration_sha256(split)}
        target = self._place(onnx_path, recipe, f"{onnx_path.stem}_int8.onnx")
        if not target.exists():
            self._on_note(f"quantizing {onnx_path.name} for {engine}, on the images of {split}")
            try:
                from boxwright.calibration import calibrate
            except ModuleNotFoundError as error:
                raise MissingDependencyError(error.name or "onnx", extra="int8", needed_for="INT8") from error
            calibrate(onnx_path, self._data, target, split=split, engine=engine, measure=False)
        return target

    def _calibration_sha256(self, split: str) -> str:
        from boxwright.data import content_sha256, load_dataset

        return content_sha256(load_dataset(self._data, split))

    def _place(self, source: Path, recipe: Mapping[str, object], name: str) -> Path:
        """Where the artifact of a recipe belongs."""
        from boxwright.bench.candidate import content_sha256

        document = {**recipe, "source": content_sha256(source), "boxwright": boxwright.__version__}
        key = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:24]
        return self._folder / key / name


def _export(source: Path, target: Path, options: SourceOptions, settings: Mapping[str, Any]) -> None:
    """Export, with packages of the extra `export`."""
    try:
        from boxwright.export import ExportOptions, export
    except ModuleNotFoundError as error:
        raise MissingDependencyError(error.name or "onnx", extra="export", needed_for="exporting") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    export(
        source,
        target,
        model=options.variant,
        head=options.head,
        labels=options.labels,
        preprocess=options.preprocess,
        options=ExportOptions(**settings),
    )


def _labels_content(labels: str | None) -> list[str] | None:
    from boxwright.core.labels import load_labels

    return None if labels is None else list(load_labels(labels))
