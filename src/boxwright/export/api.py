"""`export(source, out)`: from a checkpoint or a foreign ONNX file to a verified artifact, or no file at all."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

import boxwright
from boxwright.core.decode_spec import DecodeSpec
from boxwright.core.errors import InputError, OutputError, UnsupportedError
from boxwright.core.files import atomic_directory, check_not_source, check_writable
from boxwright.core.labels import load_labels
from boxwright.core.manifest import Manifest, VerificationRecord
from boxwright.core.preprocess_presets import preset
from boxwright.export import verify
from boxwright.export.adopt import adopt
from boxwright.export.decode_nms.function import OLDEST_OPSET
from boxwright.export.decode_nms.insert import insert_decode_nms
from boxwright.export.foreign import ForeignFile
from boxwright.export.heads import find_head
from boxwright.export.onnx_files import read_manifest, read_onnx, set_manifest, sha256_of_file, write_onnx
from boxwright.export.passes import run_passes
from boxwright.export.reference import ForeignBackend
from boxwright.export.to_openvino import WEIGHTS_PRECISIONS, convert_to_openvino
from boxwright.export.verification_images import verification_images
from boxwright.runtimes.detector import Detector
from boxwright.runtimes.openvino_plugin import require_openvino_plugin

Format = Literal["onnx", "openvino"]
NmsForm = Literal["graph", "plugin", "none"]
FORMATS = ("onnx", "openvino")
DEFAULT_SCORE_THRESHOLD, DEFAULT_IOU_THRESHOLD = 0.001, 0.7
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written.

    Attributes:
        path: of the file or folder.
        manifest: that is inside.
        verification: how it compares with its source.
        problems: images of the data set that could not be read for the comparison, each with the reason.
    """

    path: Path
    manifest: Manifest
    verification: VerificationRecord
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What an artifact is to be; as `export` takes it."""

    format: Format = "onnx"
    size_hw: tuple[int, int] | None = None
    batch: int = 1
    dynamic: bool = False
    nms: NmsForm = "graph"
    conf: float | None = None
    iou: float | None = None
    max_det: int | None = None
    agnostic_nms: bool = False
    precision: str = "fp32"
    opset: int | None = None

    def __post_init__(self) -> None:
        _require(self.format in FORMATS, "--format", "one of " + ", ".join(FORMATS), self.format)
        _require(self.nms in ("graph", "plugin", "none"), "--nms", "graph, plugin or none", self.nms)
        _require(self.batch >= 1, "--batch", "at least 1", self.batch)
        _require(self.opset is None or self.opset >= 17, "--opset", "at least 17", self.opset)
        _require(self.max_det is None or self.max_det >= 1, "--max-det", "at least 1", self.max_det)
        for name, value in (("--conf", self.conf), ("--iou", self.iou)):
            _require(value is None or 0 <= value <= 1, name, "a number in [0, 1]", value)
        allowed = WEIGHTS_PRECISIONS if self.format == "openvino" else ("fp32",)
        _require(self.precision in allowed, f"--precision for {self.format}", " or ".join(allowed), self.precision)
        if self.format == "openvino" and self.nms == "plugin":
            require_openvino_plugin("--format openvino --nms plugin")


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A graph with raw heads or detections, and the model that it comes from."""

    model: ir.Model
    manifest: Manifest
    open_reference: verify.OpenDetector
    reference_name: str


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
        out: file or folder to write; beside the source where None.
        model: variant of an author's checkpoint.
        head: of a foreign ONNX file, one of `adopt.HEADS`.
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
    out = Path(out) if out is not None else _default_out(source, options.format)
    _check_suffix(out, options.format)
    check_not_source(out, source)
    _check_replaceable(out, options.format)
    check_writable(out)
    with _naming(out), tempfile.TemporaryDirectory(prefix=".boxwright-", dir=out.parent) as folder:
        report("reading the source")
        opened = _open_source(source, model, head, labels, preprocess, options, report)
        images, problems = verification_images(data, split, opened.manifest)
        candidate, manifest = _build(opened, options, Path(folder), report)
        engine = "openvino" if options.format == "openvino" else "onnxruntime"
        report("comparing detections with the source")
        record = verify.compare(
            opened.open_reference,
            lambda conf: Detector(candidate, backend=engine, conf=conf, iou=manifest.iou_threshold),
            images,
            manifest.preprocess,
            reference_name=opened.reference_name,
            max_detections=manifest.decode.max_detections,
        )
        verify.check(record, options.precision, f"{options.format} export of {source.name}")
        manifest = replace(manifest, verification=record)
        report("writing")
        _write(opened.model, manifest, out, options, Path(folder))
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
    if wanted == "openvino":
        out = source.with_name(f"{source.stem}_openvino_model")
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
    """Raise `OutputError` where a folder that is no OpenVINO model stands in the place of the result."""
    if wanted == "openvino" and out.is_dir() and any(out.iterdir()) and not any(out.glob("*.xml")):
        raise OutputError(
            str(out),
            expected="a free place, or an OpenVINO model to replace",
            got="a folder of other things",
            fix="pass another --out",
        )


def _check_suffix(out: Path, wanted: Format) -> None:
    if wanted == "onnx" and out.suffix != ".onnx":
        raise InputError("--out", expected="a file name that ends in .onnx", got=out.name, fix="rename it")
    if wanted == "openvino" and out.suffix:
        raise InputError("--out", expected="a folder for --format openvino", got=out.name, fix="leave out the suffix")


def _open_source(
    source: Path,
    model: str | None,
    head: str | None,
    labels: str | None,
    preprocess: str | None,
    options: ExportOptions,
    report: Progress,
) -> _Source:
    if source.suffix.lower() == ".onnx":
        if head is not None:
            return _open_foreign(source, head, labels, preprocess, options)
        return _open_own_onnx(source, model, labels, preprocess, options)
    if head is not None:
        raise InputError("--head", expected="a foreign ONNX file", got=source.name, fix="leave out --head")
    return _open_checkpoint(source, model, labels, preprocess, options, report)


def _open_checkpoint(
    source: Path,
    model: str | None,
    labels: str | None,
    preprocess: str | None,
    options: ExportOptions,
    report: Progress,
) -> _Source:
    from boxwright.export.trace import trace
    from boxwright.models import load_model
    from boxwright.runtimes.torch import TorchBackend

    loaded = load_model(source, model=model, class_names=labels, preprocess=preprocess, size_hw=options.size_hw)
    manifest = _with_options(loaded.manifest(), options)
    report("tracing")
    proto = trace(
        loaded.module, loaded.size_hw, batch=options.batch, dynamic_batch=options.dynamic, opset=options.opset
    )

    def open_reference(conf: float) -> Detector:
        backend = TorchBackend.from_module(loaded.module, manifest)
        return Detector.from_backend(backend, manifest, conf=conf, iou=manifest.iou_threshold)

    return _Source(model=ir.from_proto(proto), manifest=manifest, open_reference=open_reference, reference_name="torch")


def _open_foreign(
    source: Path, head: str, labels: str | None, preprocess: str | None, options: ExportOptions
) -> _Source:
    for name, value, example in (("--labels", labels, "coco"), ("--preprocess", preprocess, "yolox-legacy")):
        if value is None:
            raise InputError(
                str(source),
                expected=f"{name} for a foreign file, which does not say it itself",
                got="none",
                fix=f"pass {name}, e.g. {name} {example}",
            )
    assert labels is not None and preprocess is not None
    class_names = load_labels(labels)
    found = find_head(head)
    foreign = ForeignFile.open(source, options.size_hw, len(class_names))
    _check_batch(foreign, options)
    reading = found.read(foreign)
    processing = preset(preprocess, foreign.size_hw)
    if foreign.has_pixel_mask and processing.resize != "stretch":
        processing = replace(processing, pixel_mask=True)
    manifest = _with_options(
        Manifest(
            family=head,
            variant=source.stem,
            class_names=class_names,
            preprocess=processing,
            decode=reading.decode,
            stage="boxes" if reading.decode.kind == "boxes" else "raw",
            source_sha256=sha256_of_file(source),
            boxwright_version=boxwright.__version__,
        ),
        options,
    )

    def open_reference(conf: float) -> Detector:
        backend = ForeignBackend(foreign, reading, manifest)
        return Detector.from_backend(backend, manifest, conf=conf, iou=manifest.iou_threshold)

    model = adopt(foreign, reading, processing, opset=options.opset or OLDEST_OPSET)
    name = f"{source.name} in onnxruntime"
    return _Source(model=model, manifest=manifest, open_reference=open_reference, reference_name=name)


def _open_own_onnx(
    source: Path, model: str | None, labels: str | None, preprocess: str | None, options: ExportOptions
) -> _Source:
    own = read_onnx(source)
    manifest = read_manifest(own, str(source))
    for name, value in (("--model", model), ("--labels", labels), ("--preprocess", preprocess)):
        if value is not None:
            raise InputError(
                name, expected="none for a file that carries its manifest", got=value, fix=f"leave out {name}"
            )
    if manifest.stage == "detections" and (options.max_det or options.agnostic_nms):
        raise UnsupportedError(
            str(source),
            expected="raw heads, to change the NMS",
            got="a graph with decoding and NMS inside",
            fix="export from the checkpoint, or from a file made with --nms none",
        )
    if options.size_hw not in (None, manifest.preprocess.size_hw):
        raise UnsupportedError(
            str(source), expected="the size that the graph has", got="another", fix="export from the checkpoint"
        )
    stored = manifest
    manifest = manifest if manifest.stage == "detections" else _with_options(manifest, options)

    def open_reference(conf: float) -> Detector:
        return Detector(
            source,
            backend="onnxruntime",
            conf=conf,
            iou=manifest.iou_threshold,
            manifest=replace(stored, decode=manifest.decode),
        )

    return _Source(
        model=own, manifest=manifest, open_reference=open_reference, reference_name=f"{source.name} in onnxruntime"
    )


def _with_options(manifest: Manifest, options: ExportOptions) -> Manifest:
    """The manifest with the user's thresholds and limits."""
    decode: DecodeSpec = manifest.decode
    if options.max_det is not None:
        decode = replace(decode, max_detections=options.max_det)
    if options.agnostic_nms:
        if decode.nms is None:
            raise UnsupportedError(
                "--agnostic-nms", expected="a detector with NMS", got=manifest.variant, fix="leave it out"
            )
        decode = replace(decode, nms=replace(decode.nms, class_agnostic=True))
    return replace(
        manifest,
        decode=decode,
        score_threshold=manifest.score_threshold if options.conf is None else options.conf,
        iou_threshold=manifest.iou_threshold if options.iou is None else options.iou,
    )


def _check_batch(foreign: ForeignFile, options: ExportOptions) -> None:
    """A foreign graph keeps the batch that it was made for."""
    if foreign.batch is None or (options.batch in (1, foreign.batch) and not options.dynamic):
        return
    wish = "--dynamic" if options.dynamic else f"--batch {options.batch}"
    raise UnsupportedError(
        wish,
        expected=f"batch {foreign.batch}, which {foreign.path.name} is made for",
        got="another",
        fix=f"leave out {wish.split()[0]}, or export the model with an open batch where it was made",
    )


def _build(opened: _Source, options: ExportOptions, folder: Path, report: Progress) -> tuple[Path, Manifest]:
    """The artifact in a folder of its own, and its manifest; `opened.model` becomes its graph."""
    manifest = opened.manifest
    if manifest.stage != "detections":
        report("simplifying")
        run_passes(opened.model)
    if options.nms != "none" and manifest.stage != "detections":
        assert manifest.preprocess.size_hw is not None
        insert_decode_nms(
            opened.model,
            decode=manifest.decode,
            size_hw=manifest.preprocess.size_hw,
            score_threshold=DEFAULT_SCORE_THRESHOLD if options.conf is None else options.conf,
            iou_threshold=DEFAULT_IOU_THRESHOLD if options.iou is None else options.iou,
            inline=options.nms == "graph",
        )
        manifest = replace(manifest, stage="detections")
    elif options.nms == "none" and manifest.stage == "detections" and options.format == "onnx":
        raise UnsupportedError(
            "--nms none",
            expected="a source with raw heads",
            got="a graph with decoding and NMS inside",
            fix="export from the checkpoint",
        )
    report("converting")
    return _write(opened.model, manifest, folder / _file_name(options.format), options, folder), manifest


def _file_name(wanted: Format) -> str:
    return "model.onnx" if wanted == "onnx" else "model_openvino_model"


def _write(model: ir.Model, manifest: Manifest, out: Path, options: ExportOptions, work: Path) -> Path:
    set_manifest(model, manifest)
    if options.format == "onnx":
        write_onnx(model, out)
        return out
    intermediate = work / "intermediate.onnx"
    write_onnx(model, intermediate)
    name = out.name.removesuffix("_openvino_model") or out.name
    with atomic_directory(out) as temporary:
        convert_to_openvino(intermediate, temporary, manifest, name=name, precision=options.precision)
    return out


def _require(condition: bool, name: str, expected: str, got: Any) -> None:
    if not condition:
        raise InputError(name, expected=expected, got=repr(got), fix="pass one that fits")
