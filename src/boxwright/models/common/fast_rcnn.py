"""Fast R-CNN: box heads on regions that something outside the network proposes, selective search unless told otherwise.

Source: Girshick, Fast R-CNN, ICCV 2015.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from boxwright.core.errors import UnsupportedError
from boxwright.core.preprocess_presets import IMAGENET_MEAN, IMAGENET_STD
from boxwright.models.common.detector import Suggestions
from boxwright.models.common.proposals import Proposals, canvas_size_hw, pad_proposals
from boxwright.models.common.region_detector import RcnnConfig, RegionDetector
from boxwright.models.common.selective_search import selective_search
from boxwright.models.common.targets import Targets

# Boxes (N, 4) xyxy for each image of a batch (B, 3, H, W) as the network gets it, in its pixels.
ProposalSource = Callable[[Tensor], Sequence[Tensor]]
_REMEMBERED_IMAGES = 4096
# Mirror images alone, as in the papers. Regions are then searched for twice in every image, and never again.
MIRROR_ALONE: Suggestions = {
    "mosaic": 0.0,
    "mixup": 0.0,
    "scale_range": (1.0, 1.0),
    "translate": 0.0,
    "hue": 0.0,
    "saturation": 0.0,
    "brightness": 0.0,
}
# The paper's number of regions an image.
NUM_COUNTED_PROPOSALS = 2000


class SelectiveSearchSource:
    """Selective search on the pixels that a normalised input was made of.

    What it finds in training it remembers, since there the images come again.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, images: Tensor) -> list[Tensor]:
        mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        pixels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        arrays = pixels.flip(1).permute(0, 2, 3, 1).cpu().numpy()  # (B, H, W, 3) BGR
        return [self._search(np.ascontiguousarray(array)).to(images) for array in arrays]

    def _search(self, image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
        key = hashlib.sha256(image.tobytes()).hexdigest()
        if key in self._known:
            return self._known[key]
        found = torch.from_numpy(selective_search(image))
        if torch.is_grad_enabled():
            self._known[key] = found
            if len(self._known) > _REMEMBERED_IMAGES:
                self._known.popitem(last=False)
        return found


def outside_proposals(source: ProposalSource, images: Tensor, image_size_hw: Tensor, variant: str) -> Proposals:
    """The proposals that a source gives for a batch, inside their images.

    Raises:
        UnsupportedError: while torch exports, since no graph can hold the source.
        InputError: where they are no finite boxes (N, 4) for each image.
    """
    if torch.onnx.is_in_onnx_export():
        raise UnsupportedError(
            f"export of {variant}",
            expected="a network that proposes regions itself",
            got="proposals from outside, which no ONNX operator gives",
            fix="train a fasterrcnn variant and export that",
        )
    if images.is_meta:  # where only the cost is counted
        boxes = images.new_zeros(images.shape[0], NUM_COUNTED_PROPOSALS, 4)
        return Proposals(boxes_xyxy=boxes, counts=images.new_zeros(images.shape[0], dtype=torch.int64))
    return pad_proposals(source(images), image_size_hw)


class FastRcnn(RegionDetector):
    """The detector.

    Attributes:
        proposal_source: gives the proposals of a batch, in training and in use; no part of the weights. Those that
            reach out of an image are clipped to it, those outside count for nothing; an image without any has no
            detections and teaches by its objects alone.
    """

    suggested_augmentation: ClassVar[Suggestions] = MIRROR_ALONE
    is_exportable: ClassVar[bool] = False

    def __init__(self, config: RcnnConfig, *, variant: str, num_classes: int) -> None:
        super().__init__(config, variant=variant, num_classes=num_classes)
        self.proposal_source: ProposalSource = SelectiveSearchSource()

    def forward(self, images: Tensor, pixel_mask: Tensor | None = None) -> dict[str, Tensor]:
        image_size_hw = canvas_size_hw(images, pixel_mask)
        proposals = outside_proposals(self.proposal_source, images, image_size_hw, self.variant)
        maps = self.backbone(images)
        if self.training:
            return {
                **{f"_map_{number}": feature_map for number, feature_map in enumerate(maps)},
                "_proposals_xyxy": proposals.boxes_xyxy,
                "_counts": proposals.counts,
                "_image_size_hw": image_size_hw,
            }
        heads = self.detect_in(maps, proposals.boxes_xyxy, image_size_hw)
        return heads if pixel_mask is None else {**heads, "image_size_hw": image_size_hw}

    def loss(self, heads: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        maps = [head for name, head in heads.items() if name.startswith("_map_")]
        proposals = Proposals(boxes_xyxy=heads["_proposals_xyxy"], counts=heads["_counts"])
        regions = [proposals.of_image(row) for row in range(len(targets))]
        parts = self.box_losses(maps, regions, heads["_image_size_hw"], targets)
        return {**parts, "loss": torch.stack(list(parts.values())).sum()}
