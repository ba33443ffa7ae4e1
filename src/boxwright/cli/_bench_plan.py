"""From files, engines, precisions and sizes to the candidates of a benchmark; what is missing is made on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxwright.cli._bench_artifacts import ArtifactCache, OnNote, SourceOptions
from boxwright.cli._opening import is_checkpoint
from boxwright.core.errors import BoxwrightError, MissingDependencyError, UnsupportedError

if TYPE_CHECKING:
    from boxwright.bench.candidate import Candidate

_CHECKPOINT_OPENER = "boxwright.cli._opening:open_candidate"
_REFUSING_OPENER = "boxwright.cli._opening:refuse_candidate"
# Engines whose INT8 rules calibration knows; others read what was made for this one.
_INT8_ENGINES = ("onnxruntime", "openvino", "tensorrt")
_DEFAULT_INT8_ENGINE = "openvino"
_TENSORRT_PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """What every model is measured with.

    Attributes:
        backends: engines; empty where each file decides.
        precisions: of the arithmetic.
        sizes_hw: of the input; empty for each model's own.
        device: to run on; None for what each engine is for.
        num_threads: of the CPU; 0 leaves it to the engine.
        calibration_split: of the data set, for INT8 files that are to be made.
    """

    backends: tuple[str, ...]
    precisions: tuple[str, ...]
    sizes_hw: tuple[tuple[int, int], ...]
    device: str | None
    num_threads: int
    calibration_split: str = "train"


@dataclass(frozen=True)
class _Cell:
    """One combination of the matrix."""

    backend: str | None
    precision: str
    size_hw: tuple[int, int] | None


def plan_candidates(
    models: list[Path], matrix: Matrix, options: SourceOptions, cache: ArtifactCache
) -> list[Candidate]:
    """Every model in every combination that it can be measured in; one that cannot is a row that says so.

    A file that is INT8 already is measured in INT8 alone. A checkpoint runs on PyTorch, and on other engines as what
    it is exported to.

    Args:
        models: paths as they were given, which exist.
        matrix: what each is measured with.
        options: what authors' files do not say of themselves.
        cache: makes what is missing.
    """
    planned = []
    for model in models:
        source = _Source(model, options, cache, matrix)
        for cell in source.cells():
            try:
                planned.append(source.candidate(cell))
            except BoxwrightError as error:
                is_unsupported = isinstance(error, (UnsupportedError, MissingDependencyError))
                refusal = {"unsupported": is_unsupported, "reason": str(error)}
                planned.append(source.named(cell, str(model), _REFUSING_OPENER, refusal))
    return planned


def prepare_candidates(
    models: list[Path], matrix: Matrix, options: SourceOptions, data: Path, *, on_note: OnNote
) -> list[Candidate]:
    """As `plan_candidates`, with what is made kept in the user's cache.

    Raises:
        InputError: where a path does not exist.
    """
    from boxwright.bench.candidate import Candidate, check_exists
    from boxwright.core.files import cache_dir

    check_exists([Candidate(model=str(model)) for model in models])
    cache = ArtifactCache(cache_dir() / "artifacts", data, on_note=on_note)
    return plan_candidates(models, matrix, options, cache)


class _Source:
    """A model as it was given, and how its candidates are made."""

    def __init__(self, path: Path, options: SourceOptions, cache: ArtifactCache, matrix: Matrix) -> None:
        from boxwright.bench.ultralytics import is_ultralytics_folder, is_ultralytics_onnx

        self._path, self._options, self._cache, self._matrix = path, options, cache, matrix
        self._is_checkpoint = is_checkpoint(path)
        # Who names a head says what the file is, whatever it says itself.
        self._is_theirs = options.head is None and (is_ultralytics_folder(path) or is_ultralytics_onnx(path))
        self._is_foreign = not self._is_theirs and path.suffix.lower() == ".onnx" and not _has_manifest(path)

    def cells(self) -> Iterator[_Cell]:
        """The combinations to measure this model in."""
        from boxwright.bench.candidate import is_quantized
        from boxwright.runtimes.engine_sidecar import built_precision

        is_int8 = not self._is_checkpoint and is_quantized(self._path)
        only = "int8" if is_int8 else built_precision(self._path)
        default_backends = ("torch",) if is_checkpoint(self._path) else (None,)
        for size_hw in self._matrix.sizes_hw or (None,):
            for backend in self._matrix.backends or default_backends:
                for precision in (only,) if only else self._matrix.precisions:
                    yield _Cell(backend, precision, size_hw)

    def candidate(self, cell: _Cell) -> Candidate:
        """The candidate of a combination.

        Raises:
            BoxwrightError: where there is none.
        """
        from boxwright.runtimes.opencv import is_opencv_file

        if cell.backend == "torch" and is_checkpoint(self._path):
            size_hw = list(cell.size_hw) if cell.size_hw else None
            options = {
                "variant": self._options.variant,
                "labels": self._options.labels,
                "preprocess": self._options.preprocess,
                "size_hw": size_hw,
            }
            return self.named(cell, str(self._path), _CHECKPOINT_OPENER, options)
        if self._options.labels is not None and is_opencv_file(self._path):
            return self.named(cell, str(self._path), _CHECKPOINT_OPENER, {"labels": self._options.labels})
        return self.named(cell, str(self._artifact(cell)))

    def named(
        self, cell: _Cell, model: str, opener: str | None = None, opener_options: Mapping[str, Any] | None = None
    ) -> Candidate:
        """A candidate that shows the path that was given, and the size where there are several."""
        from boxwright.bench.candidate import FILE_OPENER, Candidate
        from boxwright.runtimes.backend import default_device_for

        return Candidate(
            model=model,
            backend=cell.backend,
            device=self._matrix.device or default_device_for(model, cell.backend),
            precision=cell.precision,
            num_threads=self._matrix.num_threads,
            opener=opener or FILE_OPENER,
            opener_options=dict(opener_options or {}),
            shown_model=str(self._path),
            variation=f"{cell.size_hw[0]}x{cell.size_hw[1]}" if cell.size_hw else None,
        )

    def _artifact(self, cell: _Cell) -> Path:
        """The file to run, made where it is missing."""
        if cell.backend is not None:
            _require_engine(cell.backend)  # nothing is made for an engine that is not there
        path = self._floating(cell)
        if cell.precision != "int8" or self._is_quantized(path):
            return self._for_engine(path, cell)
        if path.suffix.lower() != ".onnx":
            raise UnsupportedError(
                str(self._path),
                expected="an ONNX file or a checkpoint to quantize",
                got="another kind of file",
                fix="pass the ONNX file that it was made of",
            )
        engine = cell.backend if cell.backend in _INT8_ENGINES else _DEFAULT_INT8_ENGINE
        quantized = self._cache.int8(path, engine=engine, split=self._matrix.calibration_split)
        return self._for_engine(quantized, cell)

    def _floating(self, cell: _Cell) -> Path:
        """The model as it was given where an engine opens it, else what it is exported to."""
        if self._is_theirs:
            return self._cache.ultralytics(self._path)
        if self._is_checkpoint or (self._is_foreign and self._options.head is not None):
            return self._cache.onnx(self._path, self._options, cell.size_hw)
        if cell.size_hw is not None and not self._is_foreign and _size_of(self._path) not in (None, cell.size_hw):
            raise UnsupportedError(
                str(self._path),
                expected="the input size that the file was exported for",
                got=f"{cell.size_hw[0]}x{cell.size_hw[1]}",
                fix="pass the checkpoint, or leave out --imgsz",
            )
        return self._path

    def _for_engine(self, path: Path, cell: _Cell) -> Path:
        """TensorRT runs engines; what was made from a checkpoint goes to OpenVINO as a user would ship it."""
        if cell.backend == "tensorrt" and path.suffix.lower() == ".onnx":
            if cell.precision not in _TENSORRT_PRECISIONS:
                raise UnsupportedError(
                    str(self._path),
                    expected="for TensorRT one of the precisions " + ", ".join(_TENSORRT_PRECISIONS),
                    got=cell.precision,
                    fix="leave it out of --precisions",
                )
            return self._cache.tensorrt(path, cell.precision)
        is_made = path != self._path and path.suffix.lower() == ".onnx"
        if is_made and cell.backend == "openvino" and cell.precision != "int8":
            return self._cache.openvino(path)
        return path

    @staticmethod
    def _is_quantized(path: Path) -> bool:
        from boxwright.bench.candidate import is_quantized

        return is_quantized(path)


def _require_engine(name: str) -> None:
    from boxwright.runtimes.backend import backend_module

    missing = backend_module(name).available()
    if missing is not None:
        raise UnsupportedError(
            name,
            expected="an engine that is installed",
            got=missing,
            fix="install it, or leave it out of --backends",
        )


def _has_manifest(path: Path) -> bool:
    from boxwright.bench.candidate import read_manifest

    return read_manifest(path) is not None


def _size_of(path: Path) -> tuple[int, int] | None:
    from boxwright.bench.candidate import read_manifest

    manifest = read_manifest(path)
    return None if manifest is None else manifest.preprocess.size_hw
