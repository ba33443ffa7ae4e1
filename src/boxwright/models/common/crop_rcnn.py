"""R-CNN: every proposal is cut out of the image, warped, and run through a whole network.

Fine-tuning trains the network with a softmax over the classes and the background. `fit_svms` then fits a linear SVM and
a box regressor for each class on the features of the fine-tuned network.

Source: Girshick et al., Rich feature hierarchies, CVPR 2014, sec. 2.3 and appendices A to C.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import roi_align

from boxwright.core.decode_spec import AnchorDeltas, NmsSpec
from boxwright.core.errors import InputError
from boxwright.core.preprocess import Preprocess
from boxwright.core.preprocess_presets import preset
from boxwright.models.common.anchor_deltas import DELTA_CLIP, encode_deltas
from boxwright.models.common.boxes import pairwise_iou
from boxwright.models.common.class_targets import smoothed_cross_entropy
from boxwright.models.common.detector import DetectionModel, Suggestions
from boxwright.models.common.fast_rcnn import (
    MIRROR_ALONE,
    ProposalSource,
    SelectiveSearchSource,
    outside_proposals,
)
from boxwright.models.common.proposals import Proposals, as_rois, canvas_size_hw, rois_of_lists
from boxwright.models.common.region_detector import SMALLEST_SIDE
from boxwright.models.common.roi_sampling import BACKGROUND_LABEL, sample_regions
from boxwright.models.common.targets import Targets

# Features are scaled to this length on average, which the cost and alpha are meant for. Source: the authors' code.
FEATURE_LENGTH = 20.0
SVM_COST = 1e-3
RIDGE_ALPHA = 1000.0
NEGATIVE_IOU = 0.3  # of the SVMs: proposals that overlap an object of the class less than this
REGRESSED_IOU = 0.6  # proposals that the box regressors learn from overlap their object at least this much
_CROPS_AT_ONCE = 256
_SMALLEST_SCORE = 1e-7


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """A variant.

    Attributes:
        backbone: name of a classification network in timm.
        crop_side: pixels of a warped region.
        context: pixels of the image about the region on each side of the warped one.
        samples: regions of an image that are learned from, a quarter of them objects at most.
        learning_rate: see `DetectionModel.suggested_learning_rate`.
        size_hw: the usual input size.
    """

    backbone: str
    crop_side: int = 227
    context: int = 16
    samples: int = 128
    learning_rate: float | None = None
    size_hw: tuple[int, int] = (512, 512)


class CropRcnn(DetectionModel):
    """The detector.

    Attributes:
        proposal_source: gives the proposals of a batch; see `FastRcnn`.
    """

    family: ClassVar[str] = "rcnn"
    nms_iou_threshold: ClassVar[float] = 0.3  # the authors'
    suggested_augmentation: ClassVar[Suggestions] = MIRROR_ALONE
    is_exportable: ClassVar[bool] = False
    supported_loss_options: ClassVar[frozenset[str]] = frozenset({"label_smoothing"})
    num_fitting_images: ClassVar[int] = 400
    has_svms: Tensor

    def __init__(self, config: CropConfig, *, variant: str, num_classes: int) -> None:
        super().__init__(variant=variant, num_classes=num_classes)
        self.config = config
        self.suggested_learning_rate = config.learning_rate
        self.backbone = timm.create_model(config.backbone, pretrained=False, num_classes=0)
        network: Any = self.backbone
        width = int(getattr(network, "head_hidden_size", None) or network.num_features)
        self.classifier = nn.Linear(width, num_classes + 1)
        self.svms = nn.Linear(width, num_classes)
        self.box_regressors = nn.Linear(width, num_classes * 4)
        nn.init.zeros_(self.box_regressors.weight)
        nn.init.zeros_(self.box_regressors.bias)
        for layer in (self.svms, self.box_regressors):  # these are fitted, not descended
            layer.requires_grad_(False)
        self.register_buffer("has_svms", torch.tensor(False))
        self.proposal_source: ProposalSource = SelectiveSearchSource()

    def forward(self, images: Tensor, pixel_mask: Tensor | None = None) -> dict[str, Tensor]:
        image_size_hw = canvas_size_hw(images, pixel_mask)
        proposals = outside_proposals(self.proposal_source, images, image_size_hw, self.variant)
        if self.training:
            return {"_images": images, "_proposals_xyxy": proposals.boxes_xyxy, "_counts": proposals.counts}
        features = self.features(images, as_rois(proposals.boxes_xyxy))
        shape = proposals.boxes_xyxy.shape[:2]
        heads = {
            "box_regression": self.box_regressors(features).unflatten(0, shape),  # (B, P, C * 4)
            "class_logits": self._class_logits(features).unflatten(0, shape),  # (B, P, C)
            "priors": proposals.boxes_xyxy,
        }
        return heads if pixel_mask is None else {**heads, "image_size_hw": image_size_hw}

    def features(self, images: Tensor, rois: Tensor) -> Tensor:
        """What the network says of regions (K, 5), (K, F)."""
        return torch.cat([self.backbone(self._warped(images, part)) for part in rois.split(_CROPS_AT_ONCE)])

    def _warped(self, images: Tensor, rois: Tensor) -> Tensor:
        """Crops (K, 3, side, side) with context; what lies outside of the image is the mean colour, 0."""
        config = self.config
        boxes = rois[:, 1:]
        centres, half_sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
        half_sizes = half_sizes * (config.crop_side / (config.crop_side - 2 * config.context))
        widened = torch.cat([rois[:, :1], centres - half_sizes, centres + half_sizes], dim=1)
        crops: Tensor = roi_align(images, widened, config.crop_side, sampling_ratio=1, aligned=True)
        return crops

    def _class_logits(self, features: Tensor) -> Tensor:
        """Margins of the SVMs; before they are fitted the log odds of the softmax, whose sigmoids are its scores."""
        if not self.has_svms.is_meta and bool(self.has_svms):
            margins: Tensor = self.svms(features)
            return margins
        scores = self.classifier(features).softmax(dim=1)[:, 1:].clamp(_SMALLEST_SCORE, 1 - _SMALLEST_SCORE)
        return torch.logit(scores)

    def loss(self, heads: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        proposals = Proposals(boxes_xyxy=heads["_proposals_xyxy"], counts=heads["_counts"])
        sampled = [
            sample_regions(
                proposals.of_image(row),
                boxes.to(proposals.boxes_xyxy),
                class_ids.to(proposals.counts.device),
                foreground_iou=0.5,
                hard_background_iou=0.0,
                count=self.config.samples,
                positive_fraction=0.25,
            )
            for row, (boxes, class_ids) in enumerate(zip(targets.boxes_xyxy, targets.class_ids, strict=True))
        ]
        rois = rois_of_lists([part.boxes_xyxy for part in sampled])
        if len(rois) == 0:
            nothing = self.classifier.weight.sum() * 0
            return {"class": nothing, "loss": nothing}
        logits = self.classifier(self.features(heads["_images"], rois))
        labels = torch.cat([part.labels for part in sampled])
        smoothing = self.loss_options.label_smoothing
        loss = smoothed_cross_entropy(logits, labels, labels != BACKGROUND_LABEL, smoothing=smoothing).mean()
        return {"class": loss, "loss": loss}

    def fit(self, batches: Iterable[tuple[Tensor, Targets]]) -> None:
        """The SVMs and the box regressors; see `fit_svms`."""
        fit_svms(self, batches)

    def decode_spec(self, size_hw: tuple[int, int]) -> AnchorDeltas:
        self.check_size(size_hw)
        return AnchorDeltas(
            num_classes=self.num_classes,
            delta_clip=DELTA_CLIP,
            class_specific_boxes=True,
            multi_label=True,
            clip_to_image=True,
            nms=NmsSpec(pre_nms_top_k=0, top_k_scope="class", min_size=SMALLEST_SIDE),
        )

    def default_preprocess(self, size_hw: tuple[int, int]) -> Preprocess:
        return preset("imagenet-letterbox", size_hw)


class _Examples(NamedTuple):
    """Features of regions of one class, and what they are to become."""

    positive: list[Tensor]
    negative: list[Tensor]
    regressed: list[Tensor]
    deltas: list[Tensor]


@torch.no_grad()
def fit_svms(model: CropRcnn, batches: Iterable[tuple[Tensor, Targets]]) -> None:
    """Fit the SVMs and the box regressors of a fine-tuned model, in place.

    Objects themselves are the positives of their class; its negatives are the proposals that hardly overlap any.

    Args:
        model: fine-tuned; its scores are those of the SVMs from now on.
        batches: images (B, 3, H, W) as the network gets them, with their targets.

    Raises:
        InputError: where a class has no object or no negative in them.
    """
    from sklearn.linear_model import Ridge
    from sklearn.svm import LinearSVC

    examples = [_Examples([], [], [], []) for _ in range(model.num_classes)]
    for images, targets in batches:
        _collect(model.eval(), images, targets, examples)
    scale = _feature_scale(examples)
    for class_id, found in enumerate(examples):
        positive, negative = _stacked(found.positive), _stacked(found.negative)
        if len(positive) == 0 or len(negative) == 0:
            raise InputError(
                f"SVM of class {class_id}",
                expected="objects of the class and proposals beside them",
                got=f"{len(positive)} and {len(negative)}",
                fix="give images of every class",
            )
        svm = LinearSVC(C=SVM_COST, class_weight="balanced", random_state=0, dual="auto")
        svm.fit(np.concatenate([positive, negative]) * scale, np.repeat([1, 0], [len(positive), len(negative)]))
        model.svms.weight[class_id] = torch.from_numpy((svm.coef_[0] * scale).astype(np.float32))
        model.svms.bias[class_id] = float(svm.intercept_[0])
        regressed = _stacked(found.regressed)
        if len(regressed):
            ridge = Ridge(alpha=RIDGE_ALPHA).fit(regressed * scale, _stacked(found.deltas))
            rows = slice(4 * class_id, 4 * class_id + 4)
            model.box_regressors.weight[rows] = torch.from_numpy((ridge.coef_ * scale).astype(np.float32))
            model.box_regressors.bias[rows] = torch.from_numpy(ridge.intercept_.astype(np.float32))
    model.has_svms.fill_(True)


def _feature_scale(examples: list[_Examples]) -> np.float32:
    lengths = [
        features.norm(dim=1)
        for found in examples
        for features in (*found.positive, *found.negative)
        if len(features) > 0
    ]
    mean = float(torch.cat(lengths).mean()) if lengths else 0.0
    scale: np.float32 = np.float32(FEATURE_LENGTH / max(mean, 1e-6))
    return scale


def _collect(model: CropRcnn, images: Tensor, targets: Targets, examples: list[_Examples]) -> None:
    proposals = outside_proposals(model.proposal_source, images, canvas_size_hw(images, None), model.variant)
    for row, (boxes, class_ids) in enumerate(zip(targets.boxes_xyxy, targets.class_ids, strict=True)):
        boxes, class_ids = boxes.to(images), class_ids.to(images.device)
        regions = torch.cat([boxes, proposals.of_image(row)])
        if len(regions) == 0:
            continue
        features = model.features(images[row : row + 1], rois_of_lists([regions]))
        iou = pairwise_iou(boxes, regions)  # (M, N)
        for class_id, found in enumerate(examples):
            own = (class_ids == class_id).nonzero()[:, 0]
            best_iou = iou[own].amax(dim=0) if len(own) else iou.new_zeros(len(regions))
            found.positive.append(features[own])
            found.negative.append(features[best_iou < NEGATIVE_IOU])
            if len(own):
                near = (best_iou >= REGRESSED_IOU).nonzero()[:, 0]
                wanted = boxes[own][iou[own][:, near].argmax(dim=0)]
                found.regressed.append(features[near])
                found.deltas.append(encode_deltas(wanted, regions[near]))


def _stacked(parts: list[Tensor]) -> NDArray[np.float32]:
    joined: NDArray[np.float32] = torch.cat(parts).cpu().numpy() if parts else np.zeros((0, 0), np.float32)
    return joined
