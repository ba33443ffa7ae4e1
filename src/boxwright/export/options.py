"""What an exported artifact is to be."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from boxwright.core.decode_nms_attributes import MOST_DETECTIONS
from boxwright.core.decode_spec import DecodeSpec, NmsSpec
from boxwright.core.errors import InputError, UnsupportedError
from boxwright.core.manifest import Manifest
from boxwright.export.decode_nms.function import OLDEST_OPSET
from boxwright.export.tensorrt_options import ENGINE_PRECISIONS, EngineOptions
from boxwright.export.to_deepstream import DEEPSTREAM_PRECISIONS
from boxwright.export.to_openvino import WEIGHTS_PRECISIONS
from boxwright.export.to_triton import TRITON_BACKENDS
from boxwright.runtimes.openvino_plugin import require_openvino_plugin

Format = Literal["onnx", "openvino", "tensorrt", "triton", "deepstream"]
NmsForm = Literal["graph", "plugin", "none"]
OutputNames = Literal["boxwright", "efficientnms"]
FORMATS = ("onnx", "openvino", "tensorrt", "triton", "deepstream")
# Of the graph's threshold inputs; the manifest keeps what `Detector` passes.
DEFAULT_SCORE_THRESHOLD, DEFAULT_IOU_THRESHOLD = 0.001, 0.7


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What an artifact is to be.

    Attributes:
        format: of the file.
        size_hw: of the input; the source's own where None.
        batch: images in a batch.
        dynamic: leave the batch size open.
        nms: `graph` (decoding and NMS in standard operators), `plugin` (one node DecodeNMS) or `none` (raw heads).
        conf: default of the graph's score threshold; 0.001 where None.
        iou: default of the graph's IoU threshold; 0.7 where None.
        max_det: detections kept of an image; the family's own where None.
        max_candidates: that go to NMS, of what the family limits: an image, a level or a class; its own where None.
        agnostic_nms: a box suppresses boxes of other classes too.
        embed_preprocess: the graph takes uint8 images of any size and resizes, pads and normalises them itself.
        precision: of the stored weights; for an engine of TensorRT, and for DeepStream, of the engine.
        engine: how an engine of TensorRT is built.
        output_names: of the detections: Boxwright's, or those that EfficientNMS's users know.
        triton_backend: that runs the model in Triton; for `tensorrt` an engine is built.
        opset: of ONNX; where None, 17 or the oldest after it that will do.
    """

    format: Format = "onnx"
    size_hw: tuple[int, int] | None = None
    batch: int = 1
    dynamic: bool = False
    nms: NmsForm = "graph"
    conf: float | None = None
    iou: float | None = None
    max_det: int | None = None
    max_candidates: int | None = None
    agnostic_nms: bool = False
    embed_preprocess: bool = False
    precision: str = "fp32"
    output_names: OutputNames = "boxwright"
    triton_backend: str = "onnxruntime"
    engine: EngineOptions = field(default_factory=EngineOptions)
    opset: int | None = None

    def __post_init__(self) -> None:
        _require(self.format in FORMATS, "--format", "one of " + ", ".join(FORMATS), self.format)
        _require(self.nms in ("graph", "plugin", "none"), "--nms", "graph, plugin or none", self.nms)
        _require(self.batch >= 1, "--batch", "at least 1", self.batch)
        at_least = f"at least {OLDEST_OPSET}"
        _require(self.opset is None or self.opset >= OLDEST_OPSET, "--opset", at_least, self.opset)
        fits = self.max_det is None or 1 <= self.max_det <= MOST_DETECTIONS
        _require(fits, "--max-det", f"a number from 1 to {MOST_DETECTIONS}", self.max_det)
        is_limit = self.max_candidates is None or self.max_candidates >= 1
        _require(is_limit, "--max-candidates", "at least 1", self.max_candidates)
        for name, value in (("--conf", self.conf), ("--iou", self.iou)):
            _require(value is None or 0 <= value <= 1, name, "a number in [0, 1]", value)
        precisions = {
            "openvino": WEIGHTS_PRECISIONS,
            "deepstream": DEEPSTREAM_PRECISIONS,
            "tensorrt": ENGINE_PRECISIONS,
        }
        backend = self.triton_backend
        _require(backend in TRITON_BACKENDS, "--triton-backend", " or ".join(TRITON_BACKENDS), backend)
        allowed = precisions.get("tensorrt" if self.builds_engine else self.format, ("fp32",))
        _require(self.precision in allowed, f"--precision for {self.format}", " or ".join(allowed), self.precision)
        is_free = self.builds_engine or self.engine == EngineOptions()
        _require(is_free, " ".join(self.engine.arguments()), "--format tensorrt, which it is of", self.format)
        names = ("boxwright", "efficientnms") if self.nms != "none" else ("boxwright",)
        option = f"--output-names with --nms {self.nms}"
        _require(self.output_names in names, option, " or ".join(names), self.output_names)
        # nvinfer's parser reads no local functions, and the OpenVINO of Triton has no extension.
        lacks_node = self.format == "deepstream" or (self.format == "triton" and backend == "openvino")
        forms = ("graph", "none") if lacks_node else ("graph", "plugin", "none")
        _require(self.nms in forms, f"--nms for --format {self.format}", " or ".join(forms), self.nms)
        if self.format == "openvino" and self.nms == "plugin":
            require_openvino_plugin("--format openvino --nms plugin")

    @property
    def builds_engine(self) -> bool:
        """Whether an engine of TensorRT is built."""
        return self.format == "tensorrt" or (self.format == "triton" and self.triton_backend == "tensorrt")

    @property
    def has_constant_thresholds(self) -> bool:
        """Whether nobody will give the model thresholds, so that those inside must be the right ones."""
        return self.engine.fixed_thresholds or self.format in ("triton", "deepstream")

    @property
    def changes_decoding(self) -> bool:
        """Whether something is asked for that decides which boxes come out."""
        numbers = (self.conf, self.iou, self.max_det, self.max_candidates)
        return self.agnostic_nms or any(value is not None for value in numbers)

    def apply(self, manifest: Manifest) -> Manifest:
        """The manifest with the thresholds and limits that are asked for.

        Raises:
            UnsupportedError: where the detector has no NMS that an option is about.
        """
        decode: DecodeSpec = manifest.decode
        if self.max_det is not None:
            decode = replace(decode, max_detections=self.max_det)
        for name, changes in (
            ("--agnostic-nms", {"class_agnostic": True} if self.agnostic_nms else {}),
            ("--max-candidates", {} if self.max_candidates is None else {"pre_nms_top_k": self.max_candidates}),
        ):
            if changes and decode.nms is None:
                raise UnsupportedError(name, expected="a detector with NMS", got=manifest.variant, fix="leave it out")
            if changes and decode.nms is not None:
                nms: NmsSpec = replace(decode.nms, **changes)
                decode = replace(decode, nms=nms)
        return replace(
            manifest,
            decode=decode,
            score_threshold=manifest.score_threshold if self.conf is None else self.conf,
            iou_threshold=manifest.iou_threshold if self.iou is None else self.iou,
        )


def _require(condition: bool, name: str, expected: str, got: Any) -> None:
    if not condition:
        raise InputError(name, expected=expected, got=repr(got), fix="pass one that fits")
