"""What `gpu.py` measures: ONNX files, which need torch, and engines built of them, which need a GPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("BOXWRIGHT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
DATA = SHARED / "data" / "coco-tiny"
CONF, IOU = 0.25, 0.7
SIZE_HW = (640, 640)


def write_models(folder: Path, heavy: str) -> None:
    """YOLOX-nano and a heavier variant at 640x640 in each form, and YOLOX-nano at 416x416 in float and INT8."""
    from boxwright.calibration import calibrate
    from boxwright.export import ExportOptions, export
    from boxwright.models import build_model

    folder.mkdir(exist_ok=True)
    nano = SHARED / "weights" / "yolox_nano_coco.pth"
    known: dict[str, Any] = {"model": "yolox-nano", "labels": "coco", "preprocess": "yolox-legacy"}
    export(nano, folder / "map_fp32.onnx", options=ExportOptions(), **known)
    calibrate(folder / "map_fp32.onnx", DATA, folder / "map_int8.onnx", engine="tensorrt", measure=False)
    for nms in ("plugin", "none"):
        options = ExportOptions(size_hw=SIZE_HW, nms=nms, **thresholds(nms))  # type: ignore[arg-type]
        export(nano, folder / f"nano_{nms}.onnx", options=options, **known)
    write_efficientnms(folder / "nano_none.onnx", folder / "nano_efficientnms.onnx")
    checkpoint = folder / "heavy.pt"
    save_random(build_model(heavy, num_classes=80), checkpoint)
    for nms in ("plugin", "none"):
        options = ExportOptions(size_hw=SIZE_HW, nms=nms, **thresholds(nms))  # type: ignore[arg-type]
        export(checkpoint, folder / f"heavy_{nms}.onnx", options=options)
    checkpoint.unlink()


def thresholds(nms: str) -> dict[str, float]:
    """Those that are built into a file; raw heads have none."""
    return {} if nms == "none" else {"conf": CONF, "iou": IOU}


def save_random(module: Any, path: Path) -> None:
    """A checkpoint of a model as it starts."""
    from boxwright.core.labels import load_labels
    from boxwright.models import LoadedModel
    from boxwright.models.common.saving import save_checkpoint

    loaded = LoadedModel(
        module=module.eval(),
        family=module.family,
        variant=module.variant,
        class_names=load_labels("coco"),
        preprocess=module.default_preprocess(SIZE_HW),
        size_hw=SIZE_HW,
    )
    save_checkpoint(path, module.state_dict(), loaded.manifest())


def write_efficientnms(raw: Path, out: Path) -> None:
    """YOLOX's raw heads with NVIDIA's plugin behind them: sigmoids and box decoding are layers of their own."""
    import onnx_ir as ir

    from boxwright.export.graph_builder import GraphBuilder
    from boxwright.export.onnx_files import read_manifest, read_onnx, write_onnx

    model = read_onnx(raw)
    priors = read_manifest(model, str(raw)).decode.priors()
    assert priors is not None
    graph = model.graph
    heads = {output.name: output for output in graph.outputs}
    builder = GraphBuilder("postprocess/efficientnms")
    objectness = builder.op("Unsqueeze", builder.op("Sigmoid", heads["objectness"]), [2])
    scores = builder.op("Mul", builder.op("Sigmoid", heads["class_logits"]), objectness)  # (B, N, C)
    offsets, sizes = builder.ops("Split", (heads["box_regression"], [2, 2]), 2, {"axis": 2})
    strides = builder.constant(priors[None, :, 2:])
    centres = builder.op("Add", builder.op("Mul", offsets, strides), builder.constant(priors[None, :, :2]))
    boxes = builder.op("Concat", centres, builder.op("Mul", builder.op("Exp", sizes), strides), axis=2)  # cxcywh
    attributes = {
        "score_threshold": CONF,
        "iou_threshold": IOU,
        "max_output_boxes": 300,
        "background_class": -1,
        "score_activation": 0,
        "class_agnostic": 0,
        "box_coding": 1,
        "plugin_version": "1",
    }
    node = ir.node("EfficientNMS_TRT", [boxes, scores], attributes=attributes, domain="TRT", num_outputs=4)
    node.name = "postprocess/efficientnms/plugin"
    shapes = {"num_dets": [1, 1], "det_boxes": [1, 300, 4], "det_scores": [1, 300], "det_classes": [1, 300]}
    for output, (name, shape) in zip(node.outputs, shapes.items(), strict=True):
        dtype = ir.DataType.INT32 if name in ("num_dets", "det_classes") else ir.DataType.FLOAT
        output.name, output.shape, output.type = name, ir.Shape(shape), ir.TensorType(dtype)
    graph.extend([*builder.nodes, node])
    graph.outputs.clear()
    graph.outputs.extend(node.outputs)
    graph.opset_imports["TRT"] = 1
    write_onnx(model, out)


def build_engines(folder: Path) -> dict[str, Path]:
    """All engines by name; those that are there already are kept."""
    from boxwright.export import ExportOptions, export
    from boxwright.export.tensorrt_options import EngineOptions
    from boxwright.runtimes.tensorrt_library import import_tensorrt
    from boxwright.runtimes.tensorrt_plugin import build_tensorrt_plugin, find_tensorrt_plugin

    if find_tensorrt_plugin(import_tensorrt("benchmarks/gpu.py").__version__) is None:
        build_tensorrt_plugin()
    engines = {}
    # Layers are not searched for: all of the network is in half precision, so that only what follows it differs.
    half = EngineOptions(fixed_thresholds=True, float_layers=(), timing_cache=folder / "timing.cache")
    for name in ("nano_plugin", "nano_none", "nano_efficientnms", "heavy_plugin", "heavy_none"):
        engines[name] = folder / f"{name}.engine"
        if not engines[name].exists():
            build_unchecked(folder / f"{name}.onnx", engines[name], half)
    for precision in ("fp32", "fp16", "int8"):
        source = folder / ("map_int8.onnx" if precision == "int8" else "map_fp32.onnx")
        engines[precision] = folder / f"map_{precision}.engine"
        if not engines[precision].exists():
            wanted = "fp32" if precision == "int8" else precision
            export(source, engines[precision], data=DATA, options=ExportOptions(format="tensorrt", precision=wanted))
    return engines


def build_unchecked(source: Path, engine: Path, options: Any) -> None:
    """An FP16 engine whose detections are not compared: random weights have none to speak of."""
    from boxwright.export.onnx_files import read_manifest, read_onnx
    from boxwright.export.tensorrt_request import EngineRequest, open_build_machine
    from boxwright.export.to_tensorrt import convert_to_tensorrt

    def compare(path: Path) -> Any:
        raise AssertionError("its layers in half precision are named")

    graph = read_onnx(source)
    request = EngineRequest(
        graph=graph,
        manifest=read_manifest(graph, str(source)),
        precision="fp16",
        batch=1,
        options=options,
        images=(),
        compare=compare,
        source=source.name,
        rebuild_command="python benchmarks/gpu.py measure",
    )
    convert_to_tensorrt(open_build_machine(options), request, engine, engine.parent, lambda text: None)
