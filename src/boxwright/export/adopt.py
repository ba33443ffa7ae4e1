"""Adopting a foreign ONNX file: its outputs become raw heads under our names. Nothing here needs torch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from boxwright.core.decode_spec import RAW_HEAD_NAMES
from boxwright.core.preprocess import Preprocess
from boxwright.export.foreign import ForeignFile
from boxwright.export.graph_builder import GraphBuilder, free_names
from boxwright.export.heads.operations import ArrayOperations, GraphOperations, Reading


def adopt(foreign: ForeignFile, reading: Reading, preprocess: Preprocess, *, opset: int) -> ir.Model:
    """The foreign graph with `images` as input and raw heads as outputs.

    Args:
        foreign: the file.
        reading: of its outputs.
        preprocess: decides whether a pixel mask stays an input or is all ones.
        opset: the oldest that will do.

    Raises:
        UnsupportedError: where its operators do not exist in that opset.
    """
    model = foreign.graph(opset)
    graph = model.graph
    if foreign.has_pixel_mask and not preprocess.pixel_mask:
        _fill_pixel_mask(graph)
    given = {str(value.name): value for value in graph.outputs}
    operations = GraphOperations()
    heads = reading.take_apart(operations, given)
    # An output that is a head as it is gets a node of its own, so that it can have the head's name.
    heads = {name: operations.copy(value) if value in graph.outputs else value for name, value in heads.items()}
    free_names(graph, RAW_HEAD_NAMES)
    shapes = reading.take_apart(ArrayOperations(), foreign.outputs)
    batch: int | str = "batch" if foreign.batch is None else foreign.batch
    for name, value in heads.items():
        value.name, value.type = name, ir.TensorType(ir.DataType.FLOAT)
        value.shape = ir.Shape([batch, *shapes[name].shape[1:]])
    graph.extend(operations.nodes)
    graph.outputs.clear()
    graph.outputs.extend(heads.values())
    return model


def _fill_pixel_mask(graph: ir.Graph) -> None:
    """Make the mask of an image without padding, all ones, and no input any more."""
    images, mask = graph.inputs[0], graph.inputs[1]
    assert mask.shape is not None and mask.dtype is not None
    builder = GraphBuilder("adopt/pixel_mask")
    batch = builder.op("Slice", builder.op("Shape", images), [0], [1], [0])
    sizes = builder.op("Concat", batch, [side for side in mask.shape[1:] if isinstance(side, int)], axis=0)
    ones = builder.op("ConstantOfShape", sizes, value=ir.tensor(np.ones(1, np.int64)))
    ones = builder.op("Cast", ones, to=mask.dtype)
    ir.convenience.replace_all_uses_with(mask, ones)
    graph.inputs.pop(1)
    first = next(iter(graph), None)
    assert first is not None
    graph.insert_before(first, builder.nodes)
