"""Two-stage detectors as ONNX graphs: the heads that torch gives, in both engines, whatever the proposals are."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import openvino
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from boxwright.core.decode import decode_nms
from boxwright.core.decode_nms_attributes import TRACED_DOMAIN
from boxwright.export.decode_nms.insert import insert_decode_nms
from boxwright.export.passes import run_passes
from boxwright.export.trace import trace
from boxwright.models import build_model
from boxwright.models.rcnn import FasterRcnn
from tolerances import RAW_HEADS

SIZE_HW = (96, 128)
# A pyramid, one map with RoIPool, and three box heads.
VARIANTS = ("fasterrcnn-pico", "fasterrcnn-pico-plain", "cascadercnn-pico")


@cache
def images() -> Tensor:
    """Three unlike images, the last one empty."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, *SIZE_HW, generator=generator)
    pixels[1] = torch.nn.functional.avg_pool2d(pixels[1:2], 9, 1, 4)[0] * 5
    pixels[2] = 0
    return pixels


def spread_model(variant: str) -> FasterRcnn:
    """With random weights whose scores differ by more than a rounding; the cascade has fitted anchors."""
    torch.manual_seed(0)
    model = build_model(variant, num_classes=4).eval()
    assert isinstance(model, FasterRcnn)
    if variant.startswith("cascade"):
        model.set_anchors([(9.0 + 5 * number, 12.5 + 4 * number) for number in range(model.num_anchor_sizes)])
    with torch.no_grad():
        model.rpn.head.cls_logits.weight *= 100
        for stage in model.box_stages:
            stage.box_predictor.cls_score.weight *= 20
    return model


def graph_of(model: FasterRcnn) -> bytes:
    graph = ir.from_proto(trace(model, SIZE_HW, dynamic_batch=True))
    assert [node.domain for node in graph.graph if node.domain] == [TRACED_DOMAIN]  # traced as one operator
    run_passes(graph)
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto)
    assert {entry.domain for entry in proto.opset_import} == {""} and not proto.functions
    return proto.SerializeToString()


def run_onnxruntime(graph: bytes, pixels: Tensor) -> dict[str, NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(graph)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": pixels.numpy()}), strict=True))


def run_openvino(graph: bytes, pixels: Tensor) -> dict[str, NDArray[np.float32]]:
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = compiled({"images": pixels.numpy()})
    return {output.any_name: outputs[output] for output in compiled.outputs}


@pytest.mark.parametrize("variant", VARIANTS)
def test_heads_are_those_of_torch(variant: str) -> None:
    model = spread_model(variant)
    # A threshold above the best anchor of the empty image: the others have proposals, that one has none.
    with torch.no_grad():
        best = model.rpn(model.backbone(images()), SIZE_HW).objectness.sigmoid().amax(dim=1)
    assert best[2] < best[:2].min()
    model.rpn.config = replace(model.rpn.config, score_threshold=float(best[2] + best[:2].min()) / 2)
    graph = graph_of(model)
    for rows in ([0, 1, 2], [1], [2]):
        pixels = images()[rows]
        with torch.no_grad():
            expected = {name: head.numpy() for name, head in model(pixels).items()}
        for row, number in enumerate(rows):
            assert expected["priors"][row].any() == (number != 2)
        for engine in (run_onnxruntime, run_openvino):
            found = engine(graph, pixels)
            assert found.keys() == expected.keys()
            for name, head in expected.items():
                np.testing.assert_allclose(found[name], head, atol=RAW_HEADS, err_msg=f"{engine.__name__} {name}")
    detections = decode_nms(
        found["box_regression"],
        found["class_logits"],
        attributes=model.decode_spec(SIZE_HW).attributes(),
        score_threshold=0.0,
        iou_threshold=0.5,
        priors=found["priors"],
        image_size_hw=np.array([SIZE_HW], dtype=np.float32),
    )
    assert detections.num_detections.item() == 0


@pytest.mark.parametrize("is_dynamic", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_leaves_the_raw_heads_where_calibration_finds_them(variant: str, is_dynamic: bool) -> None:
    model = spread_model(variant)
    graph = ir.from_proto(trace(model, SIZE_HW, dynamic_batch=is_dynamic))
    run_passes(graph)
    heads = [output.name for output in graph.graph.outputs]
    decode = model.decode_spec(SIZE_HW)
    insert_decode_nms(graph, decode=decode, size_hw=SIZE_HW, score_threshold=0.1, iou_threshold=0.5, inline=True)
    computed = {value.name for node in graph.graph for value in node.outputs}
    assert {"box_regression", "class_logits"} <= set(heads) <= computed
    assert [output.name for output in graph.graph.outputs] == ["num_detections", "boxes", "scores", "class_ids"]
