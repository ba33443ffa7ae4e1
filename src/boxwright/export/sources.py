"""What an export starts from: a checkpoint, a foreign ONNX file or one of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

import boxwright
from boxwright.core.errors import InputError, UnsupportedError
from boxwright.core.labels import load_labels
from boxwright.core.manifest import Manifest
from boxwright.core.preprocess_presets import preset
from boxwright.export.adopt import adopt
from boxwright.export.decode_nms.function import OLDEST_OPSET
from boxwright.export.foreign import ForeignFile
from boxwright.export.heads import read_head
from boxwright.export.onnx_files import read_manifest, read_onnx, set_manifest, sha256_of_file, write_onnx
from boxwright.export.options import ExportOptions
from boxwright.export.raw_heads import cut_at_raw_heads, ends_in_decode_nms_node
from boxwright.export.reference import ForeignBackend
from boxwright.export.verify import OpenDetector
from boxwright.runtimes.detector import Detector

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the user says of a source that does not say it itself.

    Attributes:
        model: variant of an author's checkpoint.
        head: of a foreign ONNX file.
        labels: what `load_labels` takes.
        preprocess: name of a preset.
    """

    model: str | None = None
    head: str | None = None
    labels: str | None = None
    preprocess: str | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """A graph, and the model that it comes from.

    Attributes:
        model: the graph, at the stage that the manifest says; it may be changed.
        manifest: of the graph.
        open_reference: the source as a detector.
        name: of the reference, for people.
    """

    model: ir.Model
    manifest: Manifest
    open_reference: OpenDetector
    name: str


def open_source(path: Path, description: Description, options: ExportOptions, work: Path, report: Progress) -> Source:
    """Open what is to be exported.

    Args:
        path: a checkpoint, a Darknet .weights file or an ONNX file.
        description: of it.
        options: what is to become of it.
        work: an empty folder for files that last as long as the export.
        report: told in a few words what is being done.

    Raises:
        InputError: where the file or what is said of it cannot be used.
    """
    report("reading the source")
    if path.suffix.lower() != ".onnx":
        if description.head is not None:
            raise InputError("--head", expected="a foreign ONNX file", got=path.name, fix="leave out --head")
        return _open_checkpoint(path, description, options, report)
    if description.head is not None:
        return _open_foreign(path, description, options)
    return _open_own(path, description, options, work)


def _open_checkpoint(path: Path, description: Description, options: ExportOptions, report: Progress) -> Source:
    from boxwright.export.trace import trace
    from boxwright.models import load_model
    from boxwright.runtimes.torch import TorchBackend

    loaded = load_model(
        path,
        model=description.model,
        class_names=description.labels,
        preprocess=description.preprocess,
        size_hw=options.size_hw,
    )
    manifest = options.apply(loaded.manifest())
    report("tracing")
    proto = trace(
        loaded.module, loaded.size_hw, batch=options.batch, dynamic_batch=options.dynamic, opset=options.opset
    )

    def open_reference(conf: float) -> Detector:
        backend = TorchBackend.from_module(loaded.module, manifest)
        return Detector.from_backend(backend, manifest, conf=conf, iou=manifest.iou_threshold)

    return Source(model=ir.from_proto(proto), manifest=manifest, open_reference=open_reference, name="torch")


def _open_foreign(path: Path, description: Description, options: ExportOptions) -> Source:
    labels = _needed(path, "--labels", description.labels, "coco")
    preprocess_name = _needed(path, "--preprocess", description.preprocess, "yolox-legacy")
    assert description.head is not None
    class_names = load_labels(labels)
    foreign = ForeignFile.open(path, options.size_hw, len(class_names))
    _check_batch(path, foreign.batch, options)
    reading = read_head(description.head, foreign)
    preprocess = preset(preprocess_name, foreign.size_hw)
    if foreign.has_pixel_mask and preprocess.resize != "stretch":
        preprocess = replace(preprocess, pixel_mask=True)
    manifest = options.apply(
        Manifest(
            family=description.head,
            variant=path.stem,
            class_names=class_names,
            preprocess=preprocess,
            decode=reading.decode,
            stage="boxes" if reading.decode.kind == "boxes" else "raw",
            source_sha256=sha256_of_file(path),
            boxwright_version=boxwright.__version__,
        )
    )

    def open_reference(conf: float) -> Detector:
        backend = ForeignBackend(foreign, reading, manifest)
        return Detector.from_backend(backend, manifest, conf=conf, iou=manifest.iou_threshold)

    model = adopt(foreign, reading, preprocess, opset=options.opset or OLDEST_OPSET)
    return Source(model=model, manifest=manifest, open_reference=open_reference, name=f"{path.name} in onnxruntime")


def _open_own(path: Path, description: Description, options: ExportOptions, work: Path) -> Source:
    own = read_onnx(path)
    stored = read_manifest(own, str(path))
    _check_description(description)
    _check_unchanged(path, own, stored, options)
    cut = cut_at_raw_heads(own, stored)
    has_wanted_form = options.nms != "none" and ends_in_decode_nms_node(own) == (options.nms == "plugin")
    keeps_graph = stored.stage == "detections" and has_wanted_form and not options.changes_decoding
    if cut is None and not keeps_graph:
        raise UnsupportedError(
            str(path),
            expected="a graph with raw heads of tensors, to change what is behind them",
            got="one without" if stored.input_kind == "tensor" else "one that takes pixels and gives finished boxes",
            fix="export from the checkpoint, or leave out --nms, --conf, --iou, --max-det and --agnostic-nms",
        )
    if cut is None:
        reference_path, reference_manifest = path, stored
    else:
        reference_manifest = options.apply(cut[1])
        reference_path = work / "source.onnx"
        set_manifest(cut[0], reference_manifest)
        write_onnx(cut[0], reference_path)

    def open_reference(conf: float) -> Detector:
        iou = reference_manifest.iou_threshold
        return Detector(reference_path, backend="onnxruntime", conf=conf, iou=iou, manifest=reference_manifest)

    if keeps_graph:
        model, manifest = own, stored
    else:
        assert cut is not None
        model, manifest = cut[0], reference_manifest
    return Source(model=model, manifest=manifest, open_reference=open_reference, name=f"{path.name} in onnxruntime")


def _needed(path: Path, name: str, value: str | None, example: str) -> str:
    if value is None:
        raise InputError(
            str(path),
            expected=f"{name} for a foreign file, which does not say it itself",
            got="none",
            fix=f"pass {name}, e.g. {name} {example}",
        )
    return value


def _check_description(description: Description) -> None:
    """A file that carries its manifest is not described once more."""
    given = {"--model": description.model, "--labels": description.labels, "--preprocess": description.preprocess}
    for name, value in given.items():
        if value is not None:
            raise InputError(
                name, expected="none for a file that carries its manifest", got=value, fix=f"leave out {name}"
            )


def _check_unchanged(path: Path, own: ir.Model, manifest: Manifest, options: ExportOptions) -> None:
    """A graph keeps the size, batch, operator set and kind of input that it was exported with."""
    size_hw = manifest.preprocess.size_hw
    if options.size_hw not in (None, size_hw):
        assert options.size_hw is not None
        raise UnsupportedError(
            "--imgsz",
            expected="an open size" if size_hw is None else f"{_sides(size_hw)}, which {path.name} is made for",
            got=_sides(options.size_hw),
            fix="export from the checkpoint",
        )
    shape = own.graph.inputs[0].shape
    _check_batch(path, shape[0] if shape is not None and isinstance(shape[0], int) else None, options)
    opset = own.graph.opset_imports[""]
    if options.opset not in (None, opset):
        raise UnsupportedError(
            "--opset",
            expected=f"{opset}, which {path.name} has",
            got=str(options.opset),
            fix="export from the checkpoint",
        )
    if manifest.input_kind == "pixels":
        _check_pixels(path, manifest, options)


def _check_pixels(path: Path, manifest: Manifest, options: ExportOptions) -> None:
    """Whether a graph that takes pixels can become what is asked for."""
    if options.embed_preprocess:
        raise UnsupportedError(
            "--embed-preprocess",
            expected="a graph that takes tensors",
            got=f"{path.name}, which takes pixels already",
            fix="leave it out",
        )
    if manifest.stage != "detections" and options.nms != "none":
        raise UnsupportedError(
            f"--nms {options.nms}",
            expected="a graph that takes tensors, to put decoding into",
            got=f"{path.name}, which takes pixels",
            fix="pass --nms none, or export from the checkpoint with --embed-preprocess",
        )


def _check_batch(path: Path, batch: int | None, options: ExportOptions) -> None:
    """A graph that is given keeps the batch that it was made for."""
    if batch is None or (options.batch in (1, batch) and not options.dynamic):
        return
    wish = "--dynamic" if options.dynamic else f"--batch {options.batch}"
    raise UnsupportedError(
        wish,
        expected=f"batch {batch}, which {path.name} is made for",
        got="another",
        fix=f"leave out {wish.split()[0]}, or export the model with an open batch where it was made",
    )


def _sides(size_hw: tuple[int, int]) -> str:
    return f"{size_hw[0]}x{size_hw[1]}"
