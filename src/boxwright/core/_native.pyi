import numpy as np
from numpy.typing import NDArray

def instruction_sets() -> list[str]: ...

class DecodeNmsAttributes:
    def __init__(
        self,
        *,
        box_coding: str,
        box_weights: tuple[float, ...],
        delta_clip: float,
        level_sizes: tuple[int, ...],
        level_strides: tuple[float, ...],
        level_scale_xy: tuple[float, ...],
        score_activation: str,
        objectness_activation: str,
        score_combination: str,
        background_class: int,
        class_specific_boxes: bool,
        multi_label: bool,
        with_nms: bool,
        class_agnostic: bool,
        overlap: str,
        pre_nms_top_k: int,
        top_k_scope: str,
        clip_to_image: bool,
        min_size: float,
        max_detections: int,
    ) -> None: ...
    @property
    def max_detections(self) -> int: ...

def decode_nms(
    attributes: DecodeNmsAttributes,
    box_regression: NDArray[np.float32],
    class_logits: NDArray[np.float32],
    objectness: NDArray[np.float32] | None,
    priors: NDArray[np.float32] | None,
    image_size_hw: NDArray[np.float32] | None,
    score_threshold: float,
    iou_threshold: float,
    num_detections: NDArray[np.int32],
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    class_ids: NDArray[np.int32],
    num_threads: int,
    instruction_set: str | None,
) -> None: ...
def letterbox(
    image: NDArray[np.uint8],
    canvas: NDArray[np.float32],
    resized_hw: tuple[int, int],
    offset_tl: tuple[int, int],
    pad_value: tuple[float, float, float],
    scale: tuple[float, float, float],
    bias: tuple[float, float, float],
    swap_channels: bool,
    instruction_set: str | None,
) -> None: ...
def boxes_to_image(
    boxes_xyxy: NDArray[np.float32],
    image_boxes_xyxy: NDArray[np.float32],
    resized_hw: tuple[int, int],
    offset_tl: tuple[int, int],
    image_size_hw: tuple[int, int],
) -> None: ...
