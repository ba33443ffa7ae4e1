"""What the tests of imported weights share: real images, and torchvision's one-stage models made to find something."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from boxwright.core.decode import decode_nms
from boxwright.core.detections import Detections
from boxwright.core.images import Image, read_image
from boxwright.core.preprocess import ImageTransform, Preprocess
from boxwright.core.preprocess_presets import IMAGENET_MEAN, IMAGENET_STD
from boxwright.models import DetectionModel
from tolerances import FLOAT_RESIZE, IMPORTED_BOXES, IMPORTED_SCORES


def real_images(shared_dir: Path) -> list[Image]:
    """Three photographs of different shapes."""
    paths = sorted((shared_dir / "data" / "coco-tiny" / "val2017").glob("*.jpg"))[:3]
    return [read_image(path) for path in paths]


def as_torchvision_takes_it(image: NDArray[np.uint8]) -> Tensor:
    """(3, H, W) float32, RGB, 0 to 1."""
    return torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1) / 255.0


def shortest_edge_preprocess(shortest_edge: int, max_size: int) -> Preprocess:
    """As torchvision's RetinaNet and FCOS prepare an image: the input is as large as the image needs."""
    red, green, blue = (255.0 * value for value in IMAGENET_MEAN)
    return Preprocess(
        size_hw=None,
        resize="shortest_edge",
        shortest_edge=shortest_edge,
        max_size=max_size,
        divisor=32,
        pad_value=(red, green, blue),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        resize_in_float=True,
    )


def learn_statistics(module: nn.Module, inputs: Tensor | list[Tensor]) -> None:
    """Let batch normalisation see images once, or random weights would let nothing through."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        module.train()(inputs)
    module.eval()


@torch.no_grad()
def spread_outputs(theirs: nn.Module, layers: Sequence[tuple[nn.Module, float, float]], image: Tensor) -> None:
    """Scale layers so that on an image their outputs have a mean and a standard deviation.

    Those of random weights are all alike, so that every score would be as good as a tie.

    Args:
        theirs: the detector.
        layers: of which none feeds another, with the deviation and the mean of each.
        image: as torchvision takes it.
    """
    seen: list[list[Tensor]] = [[] for _ in layers]
    hooks = [
        layer.register_forward_hook(lambda module, given, output, outputs=outputs: outputs.append(output))
        for (layer, _, _), outputs in zip(layers, seen, strict=True)
    ]
    theirs([image])
    for hook in hooks:
        hook.remove()
    for (layer, deviation, mean), outputs in zip(layers, seen, strict=True):
        values = torch.cat([part.flatten() for part in outputs])
        factor = deviation / float(values.std())
        layer.weight *= factor
        layer.bias.copy_((layer.bias - values.mean()) * factor + mean)


def inputs_of(theirs: nn.Module, preprocess: Preprocess, images: Sequence[Image]) -> Tensor:
    """Torchvision's input for images, after asserting that ours is the same but for the rounding of the resize.

    Random weights make a hundred times more of a difference in the pixels, so that both get torchvision's.
    """
    expected = theirs.transform([as_torchvision_takes_it(image) for image in images])[0]
    found = preprocess.apply_batch(list(images))
    assert [transform.resized_hw for transform in found.transforms] == [tuple(size) for size in expected.image_sizes]
    assert found.images.shape == expected.tensors.shape
    difference = np.abs(found.images - expected.tensors.numpy()) * 255 * np.array(preprocess.std)[:, None, None]
    assert difference.max() < FLOAT_RESIZE
    return expected.tensors


def detect(
    model: DetectionModel,
    pixels: Tensor,
    transforms: Sequence[ImageTransform],
    *,
    score_threshold: float,
    iou_threshold: float,
) -> list[Detections]:
    """What a model finds in its input, in pixels of the images that it was made from, clipped to them before NMS."""
    with torch.no_grad():
        heads = {name: head.numpy() for name, head in model(pixels).items()}
    spec = model.decode_spec((pixels.shape[2], pixels.shape[3]))
    found = decode_nms(
        heads["box_regression"],
        heads["class_logits"],
        objectness=heads.get("objectness"),
        attributes=spec.attributes(),
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        priors=spec.priors(),
        image_size_hw=np.array([transform.resized_hw for transform in transforms], dtype=np.float32),
    )
    counts = found.num_detections[:, 0].tolist()
    return [
        Detections(
            boxes_xyxy=transform.to_original(found.boxes[row, :count]),
            scores=found.scores[row, :count],
            class_ids=found.class_ids[row, :count],
        )
        for row, (transform, count) in enumerate(zip(transforms, counts, strict=True))
    ]


def assert_found_alike(found: Sequence[Detections], wanted: Sequence[dict[str, Tensor]], *, first_label: int) -> None:
    """Fail unless boxes, scores and labels are the same, at least 50 of them; those of equal scores in any order.

    Args:
        found: of each image.
        wanted: what torchvision gave.
        first_label: torchvision's number of our class 0.
    """
    for ours, theirs in zip(found, wanted, strict=True):
        assert len(ours) == len(theirs["boxes"])
        np.testing.assert_allclose(ours.scores, theirs["scores"].numpy(), atol=IMPORTED_SCORES)
        boxes, labels = theirs["boxes"].numpy(), theirs["labels"].numpy() - first_label
        differences = np.abs(ours.boxes_xyxy[:, None] - boxes[None]).max(axis=2)  # (ours, theirs)
        differences[ours.class_ids[:, None] != labels[None]] = np.inf
        differences[np.abs(ours.scores[:, None] - theirs["scores"].numpy()[None]) > IMPORTED_SCORES] = np.inf
        partners = differences.argmin(axis=1)
        assert (differences.min(axis=1) < IMPORTED_BOXES).all()
        assert len(set(partners.tolist())) == len(ours)
    assert sum(map(len, found)) >= 50
