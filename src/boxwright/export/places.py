"""Where an export is read from and written to: names beside the source, and places that cannot be."""

from __future__ import annotations

from pathlib import Path

from boxwright.core.errors import InputError, ModelFileError, OutputError
from boxwright.core.files import check_not_source, check_writable
from boxwright.export.options import ExportOptions, Format
from boxwright.export.to_deepstream import CONFIG_NAME
from boxwright.export.to_tensorrt import ENGINE_SUFFIXES

FOLDER_SUFFIXES = {"openvino": "_openvino_model", "triton": "_triton", "deepstream": "_deepstream"}


def find_place(source: Path, out: str | Path | None, options: ExportOptions) -> Path:
    """Where an export goes, after everything was looked at that would keep it from being written later.

    Args:
        source: to be exported.
        out: file or folder that the user names; None for a name beside the source.
        options: what the artifact is to be.

    Raises:
        ModelFileError: where there is no source.
        InputError: where the name does not fit.
        OutputError: where it cannot be written there.
    """
    _check_source(source)
    place = Path(out) if out is not None else _default_out(source, options.format)
    check_suffix(place, options.format)
    check_not_source(place, source)
    _check_replaceable(place, options.format)
    check_folder(place)
    check_writable(place)
    _check_cache("--timing-cache", options.engine.timing_cache)
    _check_cache("--calibration-cache", options.engine.calibration_cache)
    return place


def _default_out(source: Path, wanted: Format) -> Path:
    """A name beside the source; what is there already is only replaced where the user names it."""
    if wanted in FOLDER_SUFFIXES:
        out = source.with_name(f"{source.stem}{FOLDER_SUFFIXES[wanted]}")
    elif wanted == "tensorrt":
        out = source.with_suffix(ENGINE_SUFFIXES[0])
    elif source.suffix == ".onnx":
        out = source.with_name(f"{source.stem}_boxwright.onnx")
    else:
        out = source.with_suffix(".onnx")
    if out.exists():
        raise OutputError(
            str(out), expected="nothing there yet, since --out is not given", got="a file", fix="name it with --out"
        )
    return out


def _check_replaceable(out: Path, wanted: Format) -> None:
    """Raise `OutputError` where a folder of something else stands in the place of the result."""
    # To a repository of Triton a model is added.
    known = {"openvino": ("an OpenVINO model", "*.xml"), "deepstream": ("a folder for DeepStream", CONFIG_NAME)}
    name, pattern = known.get(wanted, ("", ""))
    if name and out.is_dir() and any(out.iterdir()) and not any(out.glob(pattern)):
        raise OutputError(
            str(out),
            expected=f"a free place, or {name} to replace",
            got="a folder of other things",
            fix="pass another --out",
        )


def _check_source(source: Path) -> None:
    """Raise `ModelFileError` where there is no file to export."""
    if not source.is_file():
        got = "a folder" if source.is_dir() else "a path that does not exist"
        raise ModelFileError(str(source), expected="a checkpoint or an ONNX file", got=got, fix="check the path")


def check_suffix(out: Path, wanted: Format) -> None:
    """Raise `InputError` where a name does not say what the file will be."""
    if wanted == "onnx" and out.suffix != ".onnx":
        raise InputError("--out", expected="a file name that ends in .onnx", got=out.name, fix="rename it")
    if wanted == "tensorrt" and out.suffix not in ENGINE_SUFFIXES:
        expected = "a file name that ends in " + " or ".join(ENGINE_SUFFIXES)
        raise InputError("--out", expected=expected, got=out.name, fix="rename it")
    if wanted in FOLDER_SUFFIXES and out.suffix:
        raise InputError("--out", expected=f"a folder for --format {wanted}", got=out.name, fix="leave out the suffix")


def check_folder(out: Path) -> None:
    """Raise `OutputError` where the folder is missing: it is more often misspelt than meant."""
    if not out.parent.exists():
        raise OutputError(
            str(out), expected=f"the folder {out.parent}", got="none of that name", fix="make it, or mend --out"
        )


def _check_cache(option: str, cache: Path | None) -> None:
    """Raise `OutputError` now where a file that a build leaves behind could not be written after it.

    Args:
        option: that names it.
        cache: the file; None where there shall be none.
    """
    if cache is None:
        return
    if not cache.parent.exists():
        got, fix = "none of that name", f"make it, or mend {option}"
        raise OutputError(f"{option} {cache}", expected=f"the folder {cache.parent}", got=got, fix=fix)
    if cache.is_dir():
        raise OutputError(f"{option} {cache}", expected="a file, or none yet", got="a folder", fix=f"mend {option}")
    check_writable(cache)
