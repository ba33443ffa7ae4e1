"""Every graph pass, found by its file, keeps what the graph computes; and each does what it says."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from boxwright.export.passes import find_passes, run_passes

GENERATOR = np.random.default_rng(0)
SHAPE = (2, 3, 9, 7)


def constant(name: str, *shape: int, low: float = -1.0) -> onnx.TensorProto:
    return numpy_helper.from_array(GENERATOR.uniform(low, 1.0, shape).astype(np.float32), name)


def model_of(nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto], outputs: list[str]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, list(SHAPE))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def norm_numbers() -> list[onnx.TensorProto]:
    return [constant("gamma", 4), constant("beta", 4), constant("mean", 4), constant("variance", 4, low=0.1)]


def conv_and_norm(*, bias: bool = False, second_reader: bool = False) -> onnx.ModelProto:
    inputs = ["images", "weight", *(["bias"] if bias else [])]
    nodes = [
        helper.make_node("Conv", inputs, ["convolved"]),
        helper.make_node("BatchNormalization", ["convolved", "gamma", "beta", "mean", "variance"], ["normed"]),
        helper.make_node("Relu", ["normed"], ["out"]),
    ]
    numbers = [constant("weight", 4, 3, 3, 3), *([constant("bias", 4)] if bias else []), *norm_numbers()]
    return model_of(nodes, numbers, ["out", "convolved"] if second_reader else ["out"])


def constant_chain() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Add", ["one", "two"], ["sum"]),
        helper.make_node("Identity", ["sum"], ["same"]),
        helper.make_node("Mul", ["images", "same"], ["out"]),
        helper.make_node("Relu", ["images"], ["unread"]),
    ]
    return model_of(nodes, [constant("one", 3, 1, 1), constant("two", 3, 1, 1)], ["out"])


def two_slices() -> onnx.ModelProto:
    """The halves of the last axis, of which the optimizer makes a Split."""
    nodes = [
        helper.make_node("Transpose", ["images"], ["turned"], perm=[1, 2, 3, 0]),
        helper.make_node("Slice", ["turned", "1", "2", "3"], ["second"]),
        helper.make_node("Relu", ["second"], ["rectified"]),
        helper.make_node("Slice", ["turned", "0", "1", "3"], ["first"]),
        helper.make_node("Sub", ["first", "rectified"], ["out"]),
    ]
    return model_of(nodes, [numpy_helper.from_array(np.array([value]), str(value)) for value in range(4)], ["out"])


MODELS = {
    "convolution and normalisation": lambda: conv_and_norm(),
    "with a bias": lambda: conv_and_norm(bias=True),
    "read twice": lambda: conv_and_norm(second_reader=True),
    "constants": constant_chain,
    "two slices": two_slices,
}


def results(proto: onnx.ModelProto, images: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("pass_name", find_passes())
def test_a_pass_keeps_what_the_graph_computes(pass_name: str, model_name: str) -> None:
    images = GENERATOR.uniform(-1, 1, SHAPE).astype(np.float32)
    before = MODELS[model_name]()
    expected = results(before, images)
    model = ir.from_proto(before)
    find_passes()[pass_name].run(model)
    after = ir.to_proto(model)
    known = {value.name for value in (*after.graph.input, *after.graph.initializer)}
    for node in after.graph.node:  # ONNX Runtime takes them in any order, ONNX itself does not
        assert known.issuperset(node.input), node.name
        known.update(node.output)
    assert [value.name for value in after.graph.output] == [value.name for value in before.graph.output]
    for found, wanted in zip(results(after, images), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert find_passes()[pass_name].run(model) is False, "a second run finds nothing more to do"


@pytest.mark.parametrize(
    ("name", "left"), [("convolution and normalisation", 0), ("with a bias", 0), ("read twice", 1)]
)
def test_normalisation_moves_into_the_convolution_that_only_it_reads(name: str, left: int) -> None:
    model = ir.from_proto(MODELS[name]())
    changed = run_passes(model)
    assert sum(node.op_type == "BatchNormalization" for node in model.graph) == left
    assert changed == (("fold_constants",) if left == 0 else ())


def test_constants_are_computed_and_unread_nodes_dropped() -> None:
    model = ir.from_proto(constant_chain())
    assert run_passes(model) == ("fold_constants",)
    assert [node.op_type for node in model.graph] == ["Mul"]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_split_says_the_sizes_of_its_parts_below_opset_18(count: int) -> None:
    names = [f"part{index}" for index in range(count)]
    proto = model_of([helper.make_node("Split", ["images"], names, axis=2, num_outputs=count)], [], names)
    proto.opset_import[0].version = 18
    images = GENERATOR.uniform(-1, 1, SHAPE).astype(np.float32)
    expected = results(proto, images)
    newer = ir.from_proto(proto)
    assert find_passes()["split_sizes"].run(newer) is False
    proto.opset_import[0].version = 17
    with pytest.raises(Exception, match="num_outputs"):
        results(proto, images)
    model = ir.from_proto(proto)
    assert find_passes()["split_sizes"].run(model) is True
    for found, wanted in zip(results(ir.to_proto(model), images), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
