"""`boxwright export`: from a checkpoint or a foreign ONNX file to a verified model for an engine or a server."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from boxwright.cli._options import (
    AgnosticNmsOption,
    BatchOption,
    DataIfAnyOption,
    DynamicOption,
    ImageSizeOption,
    JsonOption,
    LabelsOption,
    NmsOption,
    OpsetOption,
    PrecisionOption,
    PreprocessOption,
    SplitOption,
    VariantOption,
    parse_image_size,
)
from boxwright.cli._output import print_json, stderr_console, stdout_console
from boxwright.core.errors import AnswerIsNoError, MissingDependencyError

if TYPE_CHECKING:
    from boxwright.export import ExportResult


def export(
    source: Annotated[
        Path, typer.Argument(help="Checkpoint (.pth, .pt, .weights) or ONNX file; for Triton also an engine.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="File or folder to write; beside the source if not given.")
    ] = None,
    format: Annotated[
        Literal["onnx", "openvino", "tensorrt", "triton", "deepstream"],
        typer.Option("--format", help="What to write."),
    ] = "onnx",
    variant: VariantOption = None,
    head: Annotated[
        str | None, typer.Option("--head", help="Head of a foreign ONNX file: yolox, yolov5, yolov8, ssd or detr.")
    ] = None,
    labels: LabelsOption = None,
    preprocess: PreprocessOption = None,
    imgsz: ImageSizeOption = None,
    batch: BatchOption = 1,
    dynamic: DynamicOption = False,
    nms: NmsOption = "graph",
    conf: Annotated[
        float | None, typer.Option("--conf", min=0.0, max=1.0, help="Score threshold built in; 0.001 if not given.")
    ] = None,
    iou: Annotated[
        float | None, typer.Option("--iou", min=0.0, max=1.0, help="IoU threshold built in; 0.7 if not given.")
    ] = None,
    max_det: Annotated[int | None, typer.Option("--max-det", min=1, help="Detections kept of an image.")] = None,
    max_candidates: Annotated[
        int | None,
        typer.Option("--max-candidates", min=1, help="Candidates that go to NMS."),
    ] = None,
    agnostic_nms: AgnosticNmsOption = False,
    embed_preprocess: Annotated[
        bool,
        typer.Option("--embed-preprocess", help="The graph takes uint8 images (B, H, W, 3) of any size, BGR."),
    ] = False,
    precision: PrecisionOption = "fp32",
    output_names: Annotated[
        Literal["boxwright", "efficientnms"],
        typer.Option("--output-names", help="Names of the detections: boxes ..., or det_boxes ... as of EfficientNMS."),
    ] = "boxwright",
    triton_backend: Annotated[
        Literal["onnxruntime", "openvino", "tensorrt"],
        typer.Option("--triton-backend", help="What runs the model in Triton; for tensorrt an engine is built."),
    ] = "onnxruntime",
    workspace: Annotated[
        int | None, typer.Option("--workspace", min=1, help="TensorRT: MiB that layers may use for themselves.")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option("--timing-cache", help="TensorRT: file that keeps what the builder measured.")
    ] = None,
    dla_core: Annotated[
        int | None, typer.Option("--dla-core", min=0, help="TensorRT: DLA core of a Jetson to build for.")
    ] = None,
    float_layers: Annotated[
        str,
        typer.Option("--float-layers", help="TensorRT: nodes that stay in FP32, between commas; auto finds them."),
    ] = "auto",
    profile: Annotated[
        list[str] | None,
        typer.Option("--profile", help="TensorRT: smallest, usual and largest input, as 1x3x416x416,4x...,16x..."),
    ] = None,
    calibration_cache: Annotated[
        Path | None, typer.Option("--calibration-cache", help="TensorRT up to 10: file of ranges for INT8.")
    ] = None,
    without_cudnn: Annotated[
        bool, typer.Option("--without-cudnn", help="TensorRT 8: take no kernels of cuDNN and cuBLAS.")
    ] = False,
    fixed_thresholds: Annotated[
        bool,
        typer.Option("--fixed-thresholds", help="TensorRT: build the thresholds in, where images alone are fed."),
    ] = False,
    gpu: Annotated[int, typer.Option("--gpu", min=0, help="TensorRT: GPU to build on and for.")] = 0,
    opset: OpsetOption = None,
    data: DataIfAnyOption = None,
    split: SplitOption = "val",
    as_json: JsonOption = False,
) -> None:
    """Export a detector and prove that it still detects the same."""
    try:
        from boxwright.export import ExportOptions
        from boxwright.export import export as run_export
        from boxwright.export.tensorrt_options import EngineOptions, Profile, parse_float_layers
    except ModuleNotFoundError as error:
        extra = "tensorrt" if format == "tensorrt" and source.suffix == ".onnx" else "export"
        raise MissingDependencyError(error.name or "onnx", extra=extra, needed_for="boxwright export") from error
    console = stderr_console()
    options = ExportOptions(
        format=format,
        size_hw=None if imgsz is None else parse_image_size(imgsz),
        batch=batch,
        dynamic=dynamic,
        nms=nms,
        conf=conf,
        iou=iou,
        max_det=max_det,
        max_candidates=max_candidates,
        agnostic_nms=agnostic_nms,
        embed_preprocess=embed_preprocess,
        precision=precision,
        output_names=output_names,
        triton_backend=triton_backend,
        engine=EngineOptions(
            workspace_mb=workspace,
            timing_cache=timing_cache,
            dla_core=dla_core,
            float_layers=parse_float_layers(float_layers),
            profiles=tuple(map(Profile.parse, profile or ())),
            calibration_cache=calibration_cache,
            without_cudnn=without_cudnn,
            fixed_thresholds=fixed_thresholds,
            gpu=gpu,
        ),
        opset=opset,
    )
    with console.status("starting") as status:
        result = run_export(
            source,
            out,
            model=variant,
            head=head,
            labels=labels,
            preprocess=preprocess,
            data=data,
            split=split,
            options=options,
            on_progress=lambda text: status.update(f"{text} ..."),
        )
    if as_json:
        print_json(_document(result))
    else:
        _print(result)
    if result.problems:
        raise AnswerIsNoError(f"{len(result.problems)} images could not be compared on: {result.problems[0]}")


def _document(result: ExportResult) -> dict[str, object]:
    manifest = result.manifest
    return {
        "path": result.path,
        "family": manifest.family,
        "variant": manifest.variant,
        "stage": manifest.stage,
        "input_kind": manifest.input_kind,
        "precision": manifest.precision,
        "imgsz": manifest.preprocess.size_hw,
        "num_classes": len(manifest.class_names),
        "size_mb": _size_mb(result.path),
        "verification": None if result.verification is None else asdict(result.verification),
        "unreadable": list(result.problems),
        "notes": list(result.notes),
    }


def _print(result: ExportResult) -> None:
    from boxwright.export.verify import describe

    console = stdout_console()
    console.print(
        f"[bold]{result.path}[/bold]  {_size_mb(result.path):.1f} MB, {result.manifest.variant}", highlight=False
    )
    for note in result.notes:
        console.print(f"[yellow]note[/yellow] {note}", highlight=False)
    if result.verification is None:
        console.print("packed as it was", highlight=False)
        return
    mark = "[green]agrees[/green]" if result.verification.proven else "[yellow]not proven[/yellow]"
    console.print(f"{mark}: {describe(result.verification)}", highlight=False)


def _size_mb(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6
