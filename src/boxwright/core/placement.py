"""What each engine needs to execute a layer in INT8: one table.

The rules were found by measurement:

- ONNX Runtime (CPU) makes an integer convolution only of a node whose inputs and output are quantized, and wants
  unsigned activations: symmetric int8 runs at half of FP32's speed. Everything between two convolutions must be
  quantized too, or the way to float and back costs more than INT8 wins (style `fused`, see
  `calibration.fused_regions`). Matrix products give floats, since what surrounds them in attention is float anyway.
- OpenVINO (CPU) fuses the activation function and the next layer's quantization into the convolution, so quantizing
  the inputs of layers is enough (style `inputs`); SiLU stays whole, and a multiplication with a constant for each
  channel is fused too, which gives each channel a range of its own.
- TensorRT takes int8 without zero points alone and keeps the bias in float; it fuses like OpenVINO.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from boxwright.core.errors import UnsupportedError

Style = Literal["inputs", "fused"]
ActivationType = Literal["uint8", "int8"]
# SiLU(x) is nearly constant below this: -0.03 at -5. Steps spent on what lies lower are lost to what lies higher.
LOWEST_BEFORE_SILU = -5.0


@dataclass(frozen=True, kw_only=True)
class EngineRules:
    """Where and how Q/DQ pairs are placed for an engine.

    Attributes:
        engine: its name.
        style: `inputs` quantizes what goes into a layer; `fused` all tensors from the first layer to the last.
        activation_type: uint8 with a zero point, or int8 without.
        rescales_channels: whether a factor for each channel before the quantization of a convolution's input costs next
            to nothing.
        rescales_products: the same of a matrix product's input.
        wanted_share: part of the multiplications that shall be executed on integers where the budget allows it, even
            where a form with less is a little faster; 0 where as many as pay. No part of how a model is quantized, and
            so not of a recipe's key.
    """

    engine: str
    style: Style
    activation_type: ActivationType
    rescales_channels: bool
    rescales_products: bool = True
    wanted_share: float = field(default=0.0, repr=False)


RULES = {
    rules.engine: rules
    for rules in (
        EngineRules(engine="onnxruntime", style="fused", activation_type="uint8", rescales_channels=False),
        EngineRules(
            engine="openvino", style="inputs", activation_type="uint8", rescales_channels=True, wanted_share=0.8
        ),
        EngineRules(engine="tensorrt", style="inputs", activation_type="int8", rescales_channels=True),
    )
}
# Read by every engine, fast on OpenVINO: what is written where no engine is named.
PORTABLE = RULES["openvino"]


def rules_for(engine: str) -> EngineRules:
    """The rules of an engine.

    Raises:
        UnsupportedError: where there are none of that name.
    """
    if engine not in RULES:
        raise UnsupportedError(
            "--engines", expected="names among " + ", ".join(RULES), got=repr(engine), fix="pass some of these"
        )
    return RULES[engine]
