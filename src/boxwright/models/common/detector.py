"""What every detector family implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from boxwright.core.decode_spec import AnchorDeltas, DecodeSpec, Grid
from boxwright.core.errors import InputError
from boxwright.core.preprocess import Preprocess
from boxwright.models.common.loss_options import LossOptions
from boxwright.models.common.targets import Targets

# Names of `training.Augmentation`'s attributes, and their values; `scale_range` is a pair.
Suggestions = Mapping[str, float | tuple[float, float]]


class DetectionModel(nn.Module, ABC):
    """A detector that maps images to raw heads and raw heads with targets to a loss.

    Attributes:
        family: name of the file in `models/` that defines it.
        variant: e.g. "yolox-nano".
        num_classes: without the background.
        size_divisor: the sides of the network's input are multiples of this many pixels.
        largest_stride: the sides are at least so many pixels; a cell of the coarsest map, where that is more.
        nms_iou_threshold: overlap that its NMS suppresses at unless the user says otherwise.
        suggested_augmentation: fields of `training.Augmentation` that the family is trained with by its authors.
        suggested_learning_rate: highest one for AdamW with 16 images a step; None for the usual one. Networks of a
            few hundred thousand weights bear more, and without it they hardly move in the short runs they are for.
        is_exportable: whether a graph can hold all of it; not where something outside proposes its regions.
        num_alternating_steps: trainings after one another that its parts may take turns in; see
            `begin_alternating_step`.
        num_fitting_images: that `fit` wants at the end of a training; 0 for families that have nothing to fit.
        learns_class_only: whether images of which the class alone is known may teach it.
        describing_tensors: names in the state dict of what says how the network is built, which is its own whatever
            checkpoint a training starts from.
        supported_loss_options: names of the `LossOptions` that the family's loss heeds.
        loss_options: what a run has changed in the loss.
    """

    family: ClassVar[str]
    size_divisor: ClassVar[int] = 32
    largest_stride: ClassVar[int] = 1
    nms_iou_threshold: ClassVar[float] = 0.7
    suggested_augmentation: ClassVar[Suggestions] = {}
    suggested_learning_rate: float | None = None
    is_exportable: ClassVar[bool] = True
    num_alternating_steps: ClassVar[int] = 0
    num_fitting_images: ClassVar[int] = 0
    learns_class_only: ClassVar[bool] = False
    describing_tensors: ClassVar[frozenset[str]] = frozenset()
    supported_loss_options: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, *, variant: str, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise InputError("num_classes", expected="at least 1", got=str(num_classes), fix="give a class")
        self.variant = variant
        self.num_classes = num_classes
        self.loss_options = LossOptions()

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Raw heads of a batch.

        Args:
            images: (B, 3, H, W) as `default_preprocess` makes them.

        Returns:
            `box_regression` (B, N, 4), `class_logits` (B, N, C) and, where the head has it, `objectness` (B, N): the
            inputs of DecodeNMS. Names that begin with an underscore are for the loss alone and not exported.
        """

    @abstractmethod
    def loss(self, heads: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The parts of the training loss, scalars, and their total under the key `loss`.

        Args:
            heads: what `forward` returned in training mode.
            targets: of the same batch.
        """

    def training_loss(self, images: Tensor, targets: Targets, pixel_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Forward and loss; families whose forward needs the targets (two-stage) override this.

        Args:
            images: (B, 3, H, W).
            targets: in network pixels.
            pixel_mask: (B, H, W), for models whose preprocessing gives one.
        """
        self.check_targets(targets)
        return self.loss(self(images) if pixel_mask is None else self(images, pixel_mask), targets)

    def check_targets(self, targets: Targets) -> None:
        """Raise `InputError` where the family cannot learn from them."""
        if any(targets.is_class_only) and not self.learns_class_only:
            raise InputError(
                "Targets.is_class_only",
                expected=f"images with boxes for {self.variant}",
                got="images of which the class alone is known",
                fix="leave them out, or train a [region] network such as yolov2",
            )

    @abstractmethod
    def decode_spec(self, size_hw: tuple[int, int]) -> DecodeSpec:
        """How the raw heads become detections at this input size.

        Raises:
            InputError: where the network cannot take that size.
        """

    @abstractmethod
    def default_preprocess(self, size_hw: tuple[int, int]) -> Preprocess:
        """The preprocessing that the family is trained with."""

    def enter_final_phase(self) -> None:
        """Told once, before the last epochs, in which the strong augmentations rest."""
        return

    def begin_alternating_step(self, step: int, initial: Mapping[str, Tensor]) -> None:
        """Prepare for a training of one's own in which only some parts learn; only where there are such steps.

        Args:
            step: 1 to `num_alternating_steps`, in this order, with the weights that the one before has left.
            initial: the state dict before step 1.

        Raises:
            InputError: where there is no such step.
        """
        raise InputError(
            "alternating training",
            expected="a detector whose parts take turns, such as fasterrcnn-r18",
            got=self.variant,
            fix="leave --alternating out, or train another variant",
        )

    def fit(self, batches: Iterable[tuple[Tensor, Targets]]) -> None:
        """Fit what is not descended, in place; called once, on the weights that are kept, before their measurement.

        Args:
            batches: images (B, 3, H, W) and their targets, `num_fitting_images` or all there are, with every class.
        """
        return

    def set_loss_options(self, options: LossOptions) -> None:
        """Change what `loss` does.

        Raises:
            InputError: where the family's loss has no place for an option that is asked for.
        """
        for name in options.asked():
            if name not in self.supported_loss_options:
                known = ", ".join(sorted(self.supported_loss_options)) or "none"
                raise InputError(
                    f"--{name.replace('_', '-')}",
                    expected=f"an option that the loss of {self.variant} has ({known.replace('_', '-')})",
                    got=name.replace("_", "-"),
                    fix="leave it out, or train another family",
                )
        self.loss_options = options

    @property
    def backbone_prefixes(self) -> tuple[str, ...]:
        """Names of the submodules that are the backbone, which may be frozen or learn more slowly; empty if unknown."""
        backbone = getattr(self, "backbone", None)
        if not isinstance(backbone, nn.Module):
            return ()
        # In torchvision's detectors the pyramid is a part of `backbone`, and what others call so is its `body`.
        return ("backbone.body",) if hasattr(backbone, "body") else ("backbone",)

    def backbone_module(self) -> nn.Module | None:
        """The backbone as a module that maps images to its maps, with the detector's own layers; None without one."""
        return self.get_submodule(self.backbone_prefixes[0]) if len(self.backbone_prefixes) == 1 else None

    @property
    def num_anchor_sizes(self) -> int:
        """How many anchor sizes `set_anchors` takes; 0 where the family has none that depend on the data."""
        return 0

    def anchor_sizes_wh(self, size_hw: tuple[int, int]) -> list[tuple[float, float]]:
        """Widths and heights in pixels of the anchors of all levels, at this input size; empty where there are none."""
        spec = self.decode_spec(size_hw)
        if isinstance(spec, Grid):
            return [size_wh for level in spec.levels for size_wh in level.anchors_wh]
        if isinstance(spec, AnchorDeltas):
            cells = [cell for level in spec.levels for cell in level.cell_boxes_xyxy]
            return [(x2 - x1, y2 - y1) for x1, y1, x2, y2 in cells]
        return []

    def set_anchors(self, sizes_wh: Sequence[tuple[float, float]]) -> None:
        """Replace the anchors, which must then be part of the state dict.

        Args:
            sizes_wh: `num_anchor_sizes` widths and heights in pixels of the network's input, by ascending area.
        """
        raise InputError(
            "--anchors",
            expected="a family whose anchors depend on the data",
            got=self.variant,
            fix="leave --anchors out",
        )

    def check_size(self, size_hw: tuple[int, int]) -> None:
        """Raise `InputError` where a side is no positive multiple of `size_divisor` or below `largest_stride`."""
        divisor = self.size_divisor
        if all(side > 0 and side % divisor == 0 and side >= self.largest_stride for side in size_hw):
            return
        nearest = tuple(max(-(-self.largest_stride // divisor), 1, round(side / divisor)) * divisor for side in size_hw)
        smallest = f", {self.largest_stride} at least" if self.largest_stride > divisor else ""
        raise InputError(
            f"{self.variant} input size",
            expected=f"height and width that are multiples of {divisor}{smallest}",
            got=f"{size_hw[0]}x{size_hw[1]}",
            fix=f"pass --imgsz {nearest[0]}x{nearest[1]}",
        )
