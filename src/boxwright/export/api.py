"""`export(source, out)`: from a checkpoint or an ONNX file to a verified artifact, or to no file at all."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from boxwright.core.errors import OutputError
from boxwright.core.files import atomic_directory
from boxwright.core.manifest import Manifest, VerificationRecord
from boxwright.export import verify
from boxwright.export.decode_nms.insert import insert_decode_nms
from boxwright.export.decode_nms.schema import register_schema
from boxwright.export.efficientnms_outputs import rename_outputs
from boxwright.export.embed_preprocess import embed_preprocess
from boxwright.export.onnx_files import set_manifest, write_onnx
from boxwright.export.options import DEFAULT_IOU_THRESHOLD, DEFAULT_SCORE_THRESHOLD, ExportOptions, Format
from boxwright.export.passes import run_passes
from boxwright.export.places import FOLDER_SUFFIXES, check_folder, check_suffix, find_place
from boxwright.export.sources import Description, Progress, Source, open_source
from boxwright.export.tensorrt_candidates import candidates_that_fit, what_is_said
from boxwright.export.tensorrt_limits import OLDEST_LIMITS, ParserLimits
from boxwright.export.tensorrt_request import BuildMachine, EngineRequest, open_build_machine
from boxwright.export.thresholds import set_iou_default, threshold_defaults
from boxwright.export.to_deepstream import write_deepstream
from boxwright.export.to_openvino import convert_to_openvino
from boxwright.export.to_tensorrt import ENGINE_SUFFIXES, convert_to_tensorrt, move_engine, rebuild_command
from boxwright.export.to_triton import is_packable, pack_for_triton, write_triton_onnx
from boxwright.export.verification_images import verification_images
from boxwright.runtimes.detector import Detector
from boxwright.runtimes.engine_sidecar import read_sidecar, write_sidecar

__all__ = ["ExportOptions", "ExportResult", "export"]
_ENGINES = {"onnx": "onnxruntime", "triton": "onnxruntime", "deepstream": "onnxruntime"}  # others by their name


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
        notes: what was decided in the user's place and changes what is detected.
    """

    path: Path
    manifest: Manifest
    verification: VerificationRecord | None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


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
    out = find_place(source, out, options)
    # What is missing for an engine is said before the work.
    machine = open_build_machine(options.engine) if options.builds_engine else None
    description = Description(model=model, head=head, labels=labels, preprocess=preprocess)
    with _naming(out), tempfile.TemporaryDirectory(prefix=".boxwright-", dir=out.parent) as folder:
        work = Path(folder)
        opened, options, notes = _opened(source, description, options, machine, work, report)
        images, problems = verification_images(data, split, opened.manifest)
        graph, manifest = _build(opened, options, report)
        least_score = threshold_defaults(graph).get("score_threshold", 0.0) if options.engine.fixed_thresholds else 0.0
        report("converting")

        def compare(path: Path, backend: str) -> VerificationRecord:
            return verify.compare(
                opened.open_reference,
                lambda conf: Detector(path, backend=backend, conf=conf, iou=manifest.iou_threshold),
                images,
                manifest.preprocess,
                reference_name=opened.name,
                max_detections=manifest.decode.max_detections,
                least_score=least_score,
            )

        if machine is None:
            candidate = _write(graph, manifest, work / _file_name(options.format), options, work, source.stem)
        else:
            candidate = work / f"{source.stem}{ENGINE_SUFFIXES[0]}"
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
        engine = "tensorrt" if machine is not None else _ENGINES.get(options.format, options.format)
        record = compare(candidate, engine)
        precision = "int8" if manifest.precision == "int8" else options.precision
        verify.check(record, precision, f"{options.format} export of {source.name}")
        manifest = replace(manifest, verification=record)
        report("writing")
        if machine is None:
            _write(graph, manifest, out, options, work, source.stem)
        else:
            _place_engine(candidate, out, manifest, options)  # to build it again would take minutes, and give another
    return ExportResult(path=out, manifest=manifest, verification=record, problems=problems, notes=notes)


def _opened(
    source: Path,
    description: Description,
    options: ExportOptions,
    machine: BuildMachine | None,
    work: Path,
    report: Progress,
) -> tuple[Source, ExportOptions, tuple[str, ...]]:
    """The source, the options that it is exported with, and what is to be said of them."""
    if options.format == "triton" and options.builds_engine:  # Triton feeds no single numbers
        options = replace(options, engine=replace(options.engine, fixed_thresholds=True))
    opened = open_source(source, description, options, work, report)
    keeps_candidates = options.nms != "graph" or options.max_candidates is not None
    is_finished = opened.manifest.stage == "detections" and opened.manifest.input_kind == "pixels"
    limits = _limits_of_engine(machine, options)
    if limits is None or keeps_candidates or is_finished:
        return opened, options, ()
    fitting = candidates_that_fit(opened.manifest.decode, limits)
    if fitting is None:
        return opened, options, ()
    note = what_is_said(opened.manifest.decode, fitting, limits, has_plugin=options.builds_engine)
    report(note)
    options = replace(options, max_candidates=fitting)
    return open_source(source, description, options, work, report), options, (note,)


def _limits_of_engine(machine: BuildMachine | None, options: ExportOptions) -> ParserLimits | None:
    """What the TensorRT that builds an engine can do, be it here or elsewhere; None where none is built."""
    if machine is not None:
        return machine.api.limits
    return OLDEST_LIMITS if options.format == "deepstream" else None


def _place_engine(built: Path, out: Path, manifest: Manifest, options: ExportOptions) -> None:
    """Move a built engine to its place, or into a repository of Triton."""
    if options.format != "triton":
        move_engine(built, out, manifest)
        return
    write_sidecar(built, replace(read_sidecar(built), manifest=manifest))
    pack_for_triton(out, built.stem, built)


@contextlib.contextmanager
def _naming(out: Path) -> Iterator[None]:
    """Name what the user asked for where a file on the way to it cannot be written."""
    try:
        yield
    except OutputError as error:
        raise OutputError(str(out), expected=error.expected, got=error.got, fix=error.fix) from error


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
    if options.has_constant_thresholds:
        set_iou_default(graph, manifest.iou_threshold)
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
    if options.format == "tensorrt":
        return rebuild_command(source, out, options.precision, given, options.engine)
    engine = replace(options.engine, fixed_thresholds=False)  # as always there
    words = (options.format, "--triton-backend", options.triton_backend)
    return rebuild_command(source, out, options.precision, given, engine, format=words)


def _file_name(wanted: Format) -> str:
    return "model" + FOLDER_SUFFIXES.get(wanted, ".onnx")


def _pack(source: Path, out: str | Path | None) -> ExportResult:
    """Put an engine or an OpenVINO model into a repository of Triton."""
    name = source.stem.removesuffix(FOLDER_SUFFIXES["openvino"])
    repository = Path(out) if out is not None else source.with_name(f"{name}{FOLDER_SUFFIXES['triton']}")
    check_suffix(repository, "triton")
    check_folder(repository)
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
