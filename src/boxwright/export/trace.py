"""From a PyTorch module to an ONNX graph of its raw heads; the only file of `export` that needs torch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch import Tensor, nn

from boxwright.core.decode_spec import RAW_HEAD_NAMES
from boxwright.core.errors import UnsupportedError
from boxwright.export.decode_nms.function import OLDEST_OPSET
from boxwright.export.onnx_files import INPUT_NAME


class _HeadsInOrder(nn.Module):
    """Gives the raw heads as a tuple, so that the graph's outputs have a known order."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module = module
        self.names = names

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        heads = self.module(images)
        return tuple(heads[name] for name in self.names)


def trace(
    module: nn.Module,
    size_hw: tuple[int, int],
    *,
    batch: int = 1,
    dynamic_batch: bool = False,
    opset: int | None = None,
) -> onnx.ModelProto:
    """Trace a detector into an ONNX graph from `images` to its raw heads.

    Args:
        module: gives a dict of raw heads for images (B, 3, H, W); put into evaluation mode here.
        size_hw: height and width of the input.
        batch: images in a batch; ignored where `dynamic_batch`.
        dynamic_batch: whether the batch size stays open.
        opset: version of ONNX's operators; where None, 17, or the oldest after it that has all that the module needs.

    Returns:
        A model with the outputs `box_regression`, `class_logits` and whichever other raw heads the module gives.

    Raises:
        UnsupportedError: where torch cannot trace the module, or its operators do not exist in that opset.
    """
    module = module.eval()
    # torch.export takes a dimension of size 1 for a constant, so a batch that stays open is traced with two images.
    example = torch.zeros(2 if dynamic_batch else batch, 3, *size_hw)
    with torch.no_grad():
        given = module(example)
    names = tuple(name for name in RAW_HEAD_NAMES if name in given)
    dynamic = {"images": {0: torch.export.Dim("batch")}} if dynamic_batch else None
    with _quiet():
        try:
            program = torch.onnx.export(
                _HeadsInOrder(module, names),
                (example,),
                dynamo=True,
                opset_version=opset or OLDEST_OPSET,
                input_names=[INPUT_NAME],
                output_names=list(names),
                dynamic_shapes=dynamic,
                verbose=False,
            )
        except Exception as error:  # torch raises what it meets inside; the first line says which operator
            refusal = _refusal_of_the_module(error)
            if refusal is not None:
                raise refusal from error
            raise UnsupportedError(
                f"tracing {type(module).__name__}",
                expected="operators that torch.export and ONNX know",
                got=str(error).strip().splitlines()[0][:300],
                fix="replace the operator in the module, or report the model",
            ) from error
    assert program is not None
    model = program.model_proto
    if opset is not None:
        _check_opset(model, opset)
    return model


def _refusal_of_the_module(error: BaseException | None) -> UnsupportedError | None:
    """What a module itself said that cannot be exported, inside what torch made of it."""
    while error is not None and not isinstance(error, UnsupportedError):
        error = error.__cause__ or error.__context__
    return error


def _check_opset(model: onnx.ModelProto, opset: int) -> None:
    found = {entry.domain: entry.version for entry in model.opset_import}.get("", 0)
    if found != opset:
        raise UnsupportedError(
            f"--opset {opset}", expected="operators that exist in it", got=f"a graph of opset {found}",
            fix=f"pass --opset {found}",
        )  # fmt: skip


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's exporter from telling the user about its own versions and deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
