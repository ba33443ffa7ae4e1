"""DecodeNMS in standard ONNX operators, in every engine, held to the numpy reference by the rule of `agreement`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import pytest
from numpy.typing import NDArray

from agreement import find_disagreement
from boxwright.core import kernels
from boxwright.core.decode import DecodeNmsOutput, decode_nms
from boxwright.core.decode_nms_attributes import DecodeNmsAttributes
from boxwright.core.errors import InputError
from boxwright.export.decode_nms.function import (
    DOMAIN,
    FUNCTION_IR_VERSION,
    OLDEST_OPSET,
    OP_TYPE,
    OUTPUT_NAMES,
    decode_nms_function,
    input_names,
    node_attributes,
)
from decode_nms_cases import Case
from tolerances import BOX_COORDINATES, DECISION

Arrays = dict[str, NDArray[Any]]
CORPUS = Path(__file__).parents[1] / "core" / "decode_nms_corpus.jsonl"
# Larger heads take seconds each in the rule of agreement, and are left to the full run.
MOST_LOGITS = 20_000
# Seed, B, N and C of cases in which OpenVINO's exponential shows: off by 2e-6 at 18, and infinite from 88.4 on.
OPENVINO_EXPONENTIAL = {(19370, 5, 36, 3), (2147483649, 3, 25_200, 2)}


def is_comparable(case: Case) -> bool:
    """Whether engines can be held to 1e-6 of the scores.

    Not where a plain number as large as 3e38 is multiplied with a sigmoid: what is off by 1e-8 of it in ONNX Runtime's
    tail is no less than the score. And not where millions of pairs go into NMS without a top-k: standard operators
    want gigabytes for them.
    """
    if case.attributes.multi_label and case.attributes.pre_nms_top_k == 0 and case.num_logits > 2_000_000:
        return False
    attributes = case.attributes
    activations = {attributes.score_activation, attributes.objectness_activation}
    is_product = attributes.score_combination == "multiply" and activations == {"none", "sigmoid"}
    return not (is_product and case.special_fraction > 0)


def corpus(start: int = 0, step: int = 1, *, most_logits: float = math.inf) -> list[Case]:
    lines = [line for line in CORPUS.read_text().splitlines() if line]
    cases = [Case.from_json(line) for line in lines[start::step]]
    return [c for c in cases if is_comparable(c) and c.num_logits <= most_logits]


def decode_nms_model(
    arrays: Arrays, attributes: DecodeNmsAttributes, *, inline: bool, open_batch: bool, opset: int = OLDEST_OPSET
) -> bytes:
    """A model of DecodeNMS alone, its inputs those of the operator."""
    has_priors = "priors" in arrays
    _, num_anchors, num_classes = arrays["class_logits"].shape
    function = decode_nms_function(
        attributes, has_priors=has_priors, logits_shape=(num_anchors, num_classes) if inline else None, opset=opset
    )
    inputs = []
    for name in input_names(attributes, has_priors=has_priors):
        shape: list[int | str] = list(arrays[name].shape) if name in arrays else [1]
        if open_batch and name in arrays and not (name == "priors" and len(shape) == 2):
            shape[0] = "batch"
        inputs.append(ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape)))
    node = ir.node(
        OP_TYPE,
        inputs,
        domain=DOMAIN,
        overload=function.overload,
        attributes=node_attributes(attributes),
        num_outputs=len(OUTPUT_NAMES),
    )
    types = (ir.DataType.INT32, ir.DataType.FLOAT, ir.DataType.FLOAT, ir.DataType.INT32)
    top = attributes.max_detections
    for output, name, dtype, rest in zip(node.outputs, OUTPUT_NAMES, types, ([1], [top, 4], [top], [top]), strict=True):
        output.name, output.type, output.shape = name, ir.TensorType(dtype), ir.Shape(["batch", *rest])
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports={"": opset, DOMAIN: 1}, name="decode_nms")
    model = ir.Model(graph, ir_version=FUNCTION_IR_VERSION, functions=[function])
    if inline:
        common_passes.InlinePass()(model)
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def feeds(case: Case, arrays: Arrays) -> Arrays:
    thresholds = {"score_threshold": case.score_threshold, "iou_threshold": case.iou_threshold}
    return {**arrays, **{name: np.array([value], np.float32) for name, value in thresholds.items()}}


def run_onnxruntime(model: bytes, inputs: Arrays) -> DecodeNmsOutput:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = {entry.name for entry in session.get_inputs()}
    return DecodeNmsOutput(*session.run(OUTPUT_NAMES, {k: v for k, v in inputs.items() if k in names}))


def run_openvino(model: bytes, inputs: Arrays) -> DecodeNmsOutput:
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    names = {name for port in compiled.inputs for name in port.names}
    result = compiled({k: v for k, v in inputs.items() if k in names})
    return DecodeNmsOutput(*(np.array(result[name]) for name in OUTPUT_NAMES))


def disagreements(
    cases: list[Case], run: Callable[[bytes, Arrays], DecodeNmsOutput], forms: tuple[str, ...]
) -> list[str]:
    """One line for each case that an engine decodes otherwise than the reference."""
    found = []
    for number, case in enumerate(cases):
        inputs = case.inputs()
        arrays = {name: np.ascontiguousarray(v) for name, v in inputs.items() if isinstance(v, np.ndarray)}
        inline = forms[number % len(forms)] == "inlined"
        model = decode_nms_model(arrays, case.attributes, inline=inline, open_batch=number % 3 == 0)
        disagreement = find_disagreement(run(model, feeds(case, arrays)), **inputs)
        if disagreement:
            found.append(f"{disagreement}: {case.to_json()}")
    return found


def for_openvino(cases: list[Case]) -> list[Case]:
    """Those that OpenVINO can be asked; its optimizer does not compile graphs whose tensors are known to be empty."""
    sizes = {case: (case.seed, case.batch_size, case.num_anchors, case.num_classes) for case in cases}
    return [case for case in cases if case.num_anchors > 0 and sizes[case] not in OPENVINO_EXPONENTIAL]


def test_enough_of_the_corpus_is_compared() -> None:
    assert len(corpus()) > 2200
    assert len(for_openvino(corpus())) > 2150


def test_onnxruntime_agrees_with_the_reference() -> None:
    assert disagreements(corpus(0, 16, most_logits=MOST_LOGITS), run_onnxruntime, ("inlined", "function")) == []


def test_openvino_agrees_with_the_reference() -> None:
    cases = for_openvino(corpus(3, 40, most_logits=MOST_LOGITS))
    assert disagreements(cases, run_openvino, ("inlined",)) == []


@pytest.mark.full
@pytest.mark.parametrize("start", range(8))
def test_onnxruntime_agrees_on_the_whole_corpus(start: int) -> None:
    assert disagreements(corpus(start, 8), run_onnxruntime, ("inlined", "function")) == []


@pytest.mark.full
@pytest.mark.parametrize("start", range(8))
def test_openvino_agrees_on_the_whole_corpus(start: int) -> None:
    assert disagreements(for_openvino(corpus(start, 8)), run_openvino, ("inlined",)) == []


@pytest.mark.parametrize("run", [run_onnxruntime, run_openvino])
def test_keys_of_many_pairs_do_not_overflow(run: Callable[[bytes, Arrays], DecodeNmsOutput]) -> None:
    """130,000 pairs sorted at once: their numbers squared need more than the 32 bits that OpenVINO has."""
    attributes = DecodeNmsAttributes(box_coding="cxcywh", multi_label=True, max_detections=100)
    case = Case(
        seed=6,
        batch_size=1,
        num_anchors=1300,
        num_classes=100,
        attributes=attributes,
        score_threshold=0.8,
        iou_threshold=0.5,
        logit_step=2**-11,
        prior_form="none",
    )
    inputs = case.inputs()
    arrays = {name: np.ascontiguousarray(value) for name, value in inputs.items() if isinstance(value, np.ndarray)}
    model = decode_nms_model(arrays, attributes, inline=True, open_batch=False)
    output = run(model, feeds(case, arrays))
    assert output.num_detections[0, 0] == 100
    assert find_disagreement(output, **inputs) == ""
    np.testing.assert_array_equal(output.class_ids, decode_nms(**inputs).class_ids)


def test_boxes_whose_distance_is_no_number_suppress_nothing() -> None:
    """To OpenVINO, NaN is greater than a threshold."""
    boxes = np.array([[[-3e38, 60, 30, 80], [100, 0, 160, 200], [250, 50, 300, 130]]], np.float32)
    arrays: Arrays = {"box_regression": boxes, "class_logits": np.array([[[3], [2], [1]]], np.float32)}
    attributes = DecodeNmsAttributes(box_coding="xyxy", overlap="diou", max_detections=5)
    thresholds = {"score_threshold": 0.1, "iou_threshold": 0.7}
    expected = decode_nms(**arrays, attributes=attributes, **thresholds)
    assert expected.num_detections.tolist() == [[3]]
    model = decode_nms_model(arrays, attributes, inline=True, open_batch=False)
    fed = {**arrays, **{name: np.array([value], np.float32) for name, value in thresholds.items()}}
    for run in (run_onnxruntime, run_openvino):
        np.testing.assert_array_equal(run(model, fed).boxes, expected.boxes)


def tied_case() -> Case:
    """Many equal scores, of several classes, none near the cut of the top-k."""
    attributes = DecodeNmsAttributes(box_coding="cxcywh", multi_label=False, pre_nms_top_k=1000, max_detections=300)
    return Case(
        seed=5,
        batch_size=2,
        num_anchors=250,
        num_classes=7,
        attributes=attributes,
        score_threshold=0.05,
        iou_threshold=0.5,
        logit_step=1.0,
        prior_form="none",
    )


@pytest.mark.parametrize("run", [run_onnxruntime, run_openvino])
def test_ties_are_settled_by_class_and_anchor_in_every_engine(run: Callable[[bytes, Arrays], DecodeNmsOutput]) -> None:
    """OpenVINO's TopK does not keep the order of equal numbers; the graph must not depend on it."""
    case = tied_case()
    inputs = case.inputs()
    arrays = {name: value for name, value in inputs.items() if isinstance(value, np.ndarray)}
    model = decode_nms_model(arrays, case.attributes, inline=True, open_batch=False)
    actual, expected = run(model, feeds(case, arrays)), decode_nms(**inputs)
    assert len(np.unique(expected.scores)) < 12 < expected.num_detections.min()
    np.testing.assert_array_equal(actual.num_detections, expected.num_detections)
    np.testing.assert_array_equal(actual.class_ids, expected.class_ids)
    np.testing.assert_allclose(actual.boxes, expected.boxes, rtol=1e-6, atol=1e-4)


OPERATORS_OF_TENSORRT_8_5 = frozenset(
    # Source: docs/operators.md of onnx-tensorrt, branch 8.5-GA. Shape's attributes start and end are ignored there.
    "Abs Add And ArgMax Cast Concat Constant ConstantOfShape CumSum Div Equal Exp Expand Flatten Gather "
    "GatherElements GatherND Greater GreaterOrEqual If Less Loop MatMul Max Min Mod Mul Neg NonMaxSuppression "
    "NonZero Not Or Pad Range Reciprocal ReduceMax ReduceMin ReduceSum Reshape Resize ScatterElements ScatterND "
    "Shape Sigmoid Slice Softmax Sqrt Squeeze Sub TopK Transpose Unsqueeze Where".split()
)


@pytest.mark.parametrize("case", corpus(1, 80), ids=lambda case: f"{case.attributes.box_coding}-{case.seed}")
def test_the_body_is_valid_and_keeps_to_what_tensorrt_reads(case: Case) -> None:
    arrays = {name: value for name, value in case.inputs().items() if isinstance(value, np.ndarray)}
    model = onnx.load_from_string(decode_nms_model(arrays, case.attributes, inline=True, open_batch=True))
    onnx.checker.check_model(model)
    assert {entry.version for entry in model.opset_import if entry.domain == ""} == {17}
    assert not any(entry.domain == DOMAIN for entry in model.opset_import if model.functions)
    loops = [attribute.g for node in model.graph.node for attribute in node.attribute if attribute.HasField("g")]
    for node in [*model.graph.node, *(node for graph in loops for node in graph.node)]:
        assert node.op_type in OPERATORS_OF_TENSORRT_8_5, node.op_type
        assert node.op_type != "Shape" or not node.attribute


@pytest.mark.parametrize("opset", [18, 21])
def test_newer_operators_give_the_same(opset: int) -> None:
    case = tied_case()
    inputs = case.inputs()
    arrays = {name: value for name, value in inputs.items() if isinstance(value, np.ndarray)}
    for inline in (False, True):
        model = decode_nms_model(arrays, case.attributes, inline=inline, open_batch=False, opset=opset)
        onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
        assert find_disagreement(run_onnxruntime(model, feeds(case, arrays)), **inputs) == ""


def test_without_nms_there_is_no_nms_node() -> None:
    attributes = DecodeNmsAttributes(box_coding="cxcywh", with_nms=False)
    assert "NonMaxSuppression" not in {node.op_type for node in decode_nms_function(attributes, has_priors=False)}


def test_overloads_tell_attribute_sets_apart() -> None:
    attributes = [
        DecodeNmsAttributes(box_coding="cxcywh"),
        DecodeNmsAttributes(box_coding="xyxy"),
        DecodeNmsAttributes(box_coding="xyxy", max_detections=100),
    ]
    names = {decode_nms_function(a, has_priors=p).overload for a in attributes for p in (False, True)}
    assert len(names) == 6


def test_a_coding_without_its_priors_is_refused() -> None:
    with pytest.raises(InputError, match="priors"):
        decode_nms_function(DecodeNmsAttributes(box_coding="yolox"), has_priors=False)


@pytest.mark.parametrize(("score_threshold", "multi_label", "least"), [(0.25, False, 300), (0.001, True, 10_000)])
def test_all_four_keep_the_same_boxes_of_a_trained_detector(
    trained_heads: tuple[Arrays, DecodeNmsAttributes], score_threshold: float, multi_label: bool, least: int
) -> None:
    arrays, attributes = trained_heads
    assert len(arrays["class_logits"]) == 80
    attributes = dataclasses.replace(attributes, multi_label=multi_label)
    thresholds = {"score_threshold": score_threshold, "iou_threshold": 0.65}
    expected = decode_nms(**arrays, attributes=attributes, **thresholds)
    assert expected.num_detections.sum() >= least
    model = decode_nms_model(arrays, attributes, inline=True, open_batch=True)
    fed = {**arrays, **{name: np.array([value], np.float32) for name, value in thresholds.items()}}
    results = {"ONNX Runtime": run_onnxruntime(model, fed), "OpenVINO": run_openvino(model, fed)}
    for name in kernels.instruction_sets():
        results[name] = kernels.decode_nms(**arrays, attributes=attributes, **thresholds, instruction_set=name)
    for name, result in results.items():
        assert find_disagreement(result, **arrays, attributes=attributes, **thresholds) == "", name
        if multi_label:
            continue  # of thousands of scores near 0.001 some lie within 1e-6 of each other
        np.testing.assert_array_equal(result.num_detections, expected.num_detections, err_msg=name)
        np.testing.assert_array_equal(result.class_ids, expected.class_ids, err_msg=name)
        np.testing.assert_allclose(result.scores, expected.scores, rtol=0, atol=DECISION, err_msg=name)
        errors = np.abs(result.boxes - expected.boxes).max(axis=2)
        assert (errors <= 2 * BOX_COORDINATES * np.abs(expected.boxes).max(axis=2)).all(), name
