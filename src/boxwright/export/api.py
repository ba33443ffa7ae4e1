"""`export(source, out)`: from a checkpoint or an ONNX file to a verified artifact, or to no file at all."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from boxwright.core.errors import InputError, ModelFileError, OutputError
from boxwright.core.files import atomic_directory, check_not_source, check_writable
from boxwright.core.manifest import Manifest, VerificationRecord
from boxwright.export import verify
from boxwright.export.decode_nms.insert import insert_decode_nms
from boxwright.export.decode_nms.schema import register_schema
from boxwright.export.efficientnms_outputs import rename_outputs
from boxwright.export.embed_preprocess import embed_preprocess
from boxwright.export.onnx_files import set_manifest, write_onnx
from boxwright.export.options import DEFAULT_IOU_THRESHOLD, DEFAULT_SCORE_THRESHOLD, ExportOptions, Format
from boxwright.export.passes import run_passes
from boxwright.export.sources import Description, Progress, Source, open_source
from boxwright.export.to_deepstream import CONFIG_NAME, write_deepstream
from boxwright.export.to_openvino import convert_to_openvino
from boxwright.export.to_tensorrt import (
    ENGINE_SUFFIXES,
    EngineRequest,
    convert_to_tensorrt,
    move_engine,
    open_build_machine,
    rebuild_command,
)
from boxwright.export.to_triton import is_packable, pack_for_triton, write_triton_onnx
from boxwright.export.verification_images import verification_images
from boxwright.runtimes.detector import Detector

__all__ = ["ExportOptions", "ExportResult", "export"]
_ENGINES = {"onnx": "onnxruntime", "triton": "onnxruntime", "deepstream": "onnxruntime"}  # others by their name
_FOLDER_SUFFIXES = {"openvino": "_openvino_model", "triton": "_triton", "deepstream": "_deepstream"}


# Whoever checks with the onnx package what was exported has the operator checked too.
register_schema()


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written.

    Attributes:
        path: of the file or folder.
        manifest: that is inside.
        verification: how it compares with its source; None for what was packed as it was and does not say.
        problems: images of the data set that could not be read for the comparison, each with the reason.
    """

    path: Path
    manifest: Manifest
    verification: VerificationRecord | None
    problems: tuple[str, ...] = ()


def export(
    source: str | Path,
    out: str | Path | None = None,
    *,
    model: str | None = None,
    head: str | None = None,
    labels: str | None = None,
    preprocess: str | None = None,
    data: str | Path | None = None,
    split: str = "val",
    options: ExportOptions | None = None,
    on_progress: Progress | None = None,
) -> ExportResult:
    """Export a detector, compare it with its source at the detections, and write it where the two agree.

    Args:
        source: a checkpoint, a Darknet .weights file, a foreign ONNX file (with `head`), or an ONNX file of ours.
        out: file or folder to write, in a folder that exists; beside the source where None.
        model: variant of an author's checkpoint.
        head: of a foreign ONNX file, one of `heads.head_names()`.
        labels: what `load_labels` takes.
        preprocess: name of a preset.
        data: data set whose images the comparison is made on; generated ones where None.
        split: of the data set.
        options: what the artifact is to be.
        on_progress: told in a few words what is being done.

    Returns:
        An `ExportResult`.

    Raises:
        VerificationError: where the artifact does not detect what the source does; nothing is written.
        InputError: where something given cannot be used.
    """
    options = options or ExportOptions()
    report = on_progress or (lambda _: None)
    source = Path(source)
    if options.format == "triton" and is_packable(source):
        return _pack(source, out)
    _check_source(source)
    out = Path(out) if out is not None else _default_out(source, options.format)
    _check_suffix(out, options.format)
    check_not_source(out, source)
    _check_replaceable(out, options.format)
    _check_folder(out)
    check_writable(out)
    # What is missing for an engine is said before the work.
    machine = open_build_machine(options.engine) if options.format == "tensorrt" else None
    description = Description(model=model, head=head, labels=labels, preprocess=preprocess)
    with _naming(out), tempfile.TemporaryDirectory(prefix=".boxwright-", dir=out.parent) as folder:
        work = Path(folder)
        opened = open_source(source, description, options, work, report)
        images, problems = verification_images(data, split, opened.manifest)
        graph, manifest = _build(opened, options, report)
        report("converting")

        def compare(path: Path, backend: str) -> VerificationRecord:
            return verify.compare(
                opened.open_reference,
                lambda conf: Detector(path, backend=backend, conf=conf, iou=manifest.iou_threshold),
                images,
                manifest.preprocess,
                reference_name=opened.name,
                max_detections=manifest.decode.max_detections,
            )

        if machine is None:
            candidate = _write(graph, manifest, work / _file_name(options.format), options, work, source.stem)
        else:
            candidate = work / "model.engine"
            request = EngineRequest(
                graph=graph,
                manifest=manifest,
                precision=options.precision,
                batch=options.batch,
                options=options.engine,
                images=images,
                compare=lambda path: compare(path, "onnxruntime"),
                source=source.name,
                rebuild_command=_command(source, out, description, data, split, options),
            )
            manifest = convert_to_tensorrt(machine, request, candidate, work, report)
        report("comparing detections with the source")
        record = compare(candidate, _ENGINES.get(options.format, options.format))
        precision = "int8" if manifest.precision == "int8" else options.precision
        verify.check(record, precision, f"{options.format} export of {source.name}")
        manifest = replace(manifest, verification=record)
        report("writing")
        if machine is None:
            _write(graph, manifest, out, options, work, source.stem)
        else:
            move_engine(candidate, out, manifest)  # to build it again would take minutes, and give another
    return ExportResult(path=out, manifest=manifest, verification=record, problems=problems)


@contextlib.contextmanager
def _naming(out: Path) -> Iterator[None]:
    """Name what the user asked for where a file on the way to it cannot be written."""
    try:
        yield
    except OutputError as error:
        raise OutputError(str(out), expected=error.expected, got=error.got, fix=error.fix) from error


def _default_out(source: Path, wanted: Format) -> Path:
    """A name beside the source; what is there already is only replaced where the user names it."""
    if wanted in _FOLDER_SUFFIXES:
        out = source.with_name(f"{source.stem}{_FOLDER_SUFFIXES[wanted]}")
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
    if not source.is_file():
        got = "a folder" if source.is_dir() else "a path that does not exist"
        raise ModelFileError(str(source), expected="a checkpoint or an ONNX file", got=got, fix="check the path")


def _check_suffix(out: Path, wanted: Format) -> None:
    if wanted == "onnx" and out.suffix != ".onnx":
        raise InputError("--out", expected="a file name that ends in .onnx", got=out.name, fix="rename it")
    if wanted == "tensorrt" and out.suffix not in ENGINE_SUFFIXES:
        expected = "a file name that ends in " + " or ".join(ENGINE_SUFFIXES)
        raise InputError("--out", expected=expected, got=out.name, fix="rename it")
    if wanted in _FOLDER_SUFFIXES and out.suffix:
        raise InputError("--out", expected=f"a folder for --format {wanted}", got=out.name, fix="leave out the suffix")


def _check_folder(out: Path) -> None:
    """Raise `OutputError` where the folder is missing: it is more often misspelt than meant."""
    if not out.parent.exists():
        raise OutputError(
            str(out), expected=f"the folder {out.parent}", got="none of that name", fix="make it, or mend --out"
        )


def _build(opened: Source, options: ExportOptions, report: Progress) -> tuple[ir.Model, Manifest]:
    """The artifact's graph and manifest; changes the graph of the source."""
    graph, manifest = opened.model, opened.manifest
    if manifest.stage != "detections":
        report("simplifying")
        run_passes(graph)
        if options.nms != "none":
            assert manifest.preprocess.size_hw is not None
            insert_decode_nms(
                graph,
                decode=manifest.decode,
                size_hw=manifest.preprocess.size_hw,
                score_threshold=DEFAULT_SCORE_THRESHOLD if options.conf is None else options.conf,
                iou_threshold=DEFAULT_IOU_THRESHOLD if options.iou is None else options.iou,
                inline=options.nms == "graph",
            )
            manifest = replace(manifest, stage="detections")
    if options.embed_preprocess:
        embed_preprocess(graph, manifest.preprocess, gives_detections=manifest.stage == "detections")
        manifest = replace(manifest, input_kind="pixels")
    if options.output_names == "efficientnms":
        rename_outputs(graph)
    return graph, manifest


def _command(
    source: Path, out: Path, description: Description, data: str | Path | None, split: str, options: ExportOptions
) -> str:
    """The command that makes the same engine, where it is needed again."""
    given = {
        "--model": description.model,
        "--head": description.head,
        "--labels": description.labels,
        "--preprocess": description.preprocess,
        "--imgsz": None if options.size_hw is None else "x".join(map(str, options.size_hw)),
        "--batch": None if options.batch == 1 else options.batch,
        "--dynamic": options.dynamic,
        "--nms": None if options.nms == "graph" else options.nms,
        "--conf": options.conf,
        "--iou": options.iou,
        "--max-det": options.max_det,
        "--max-candidates": options.max_candidates,
        "--agnostic-nms": options.agnostic_nms,
        "--embed-preprocess": options.embed_preprocess,
        "--output-names": None if options.output_names == "boxwright" else options.output_names,
        "--opset": options.opset,
        "--data": data,
        "--split": None if data is None else split,
    }
    return rebuild_command(source, out, options.precision, given, options.engine)


def _file_name(wanted: Format) -> str:
    return "model" + _FOLDER_SUFFIXES.get(wanted, ".onnx")


def _pack(source: Path, out: str | Path | None) -> ExportResult:
    """Put an engine or an OpenVINO model into a repository of Triton."""
    name = source.stem.removesuffix(_FOLDER_SUFFIXES["openvino"])
    repository = Path(out) if out is not None else source.with_name(f"{name}{_FOLDER_SUFFIXES['triton']}")
    _check_suffix(repository, "triton")
    _check_folder(repository)
    manifest = pack_for_triton(repository, name, source)
    return ExportResult(path=repository, manifest=manifest, verification=manifest.verification)


def _write(
    graph: ir.Model, manifest: Manifest, out: Path, options: ExportOptions, work: Path, source_name: str
) -> Path:
    """Write the artifact, and give the path that `Detector` opens."""
    set_manifest(graph, manifest)
    if options.format == "onnx":
        write_onnx(graph, out)
        return out
    if options.format == "triton":
        return write_triton_onnx(
            out, source_name, manifest, lambda path: write_onnx(graph, path), backend=options.triton_backend
        )
    if options.format == "deepstream":
        return write_deepstream(
            out, manifest, lambda path: write_onnx(graph, path), batch=options.batch, precision=options.precision
        )
    intermediate = work / "intermediate.onnx"
    write_onnx(graph, intermediate)
    name = out.name.removesuffix("_openvino_model") or out.name
    with atomic_directory(out) as temporary:
        convert_to_openvino(intermediate, temporary, manifest, name=name, precision=options.precision)
    return out
