"""The evaluators, held to pycocotools and to numbers worked out by hand."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import cv2
import numpy as np
import pytest

from boxwright.bench.accuracy import Predictions, evaluate, score
from boxwright.bench.confusion import confusion_matrix
from boxwright.bench.voc_metrics import compute_voc_metrics
from boxwright.core.boxes import xyxy_to_xywh
from boxwright.core.detections import Detections
from boxwright.core.errors import DatasetError, ImageError
from boxwright.data.dataset import Sample
from generated_detections import SIZE_HW, dataset_of, detections_of, generate, sample_of
from tolerances import COCO_METRICS

NAMES = tuple(f"class {index}" for index in range(7))
COCO_FIELDS = "map map50 map75 map_small map_medium map_large ar_1 ar_10 ar ar_small ar_medium ar_large".split()


def pycocotools_stats(samples: list[Sample], detections: list[Detections], num_classes: int) -> tuple:
    """COCO's twelve numbers and its array of precisions, from COCO's own code, on rows made here."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations = []
    for image_id, sample in enumerate(samples):
        for index, box_xywh in enumerate(xyxy_to_xywh(sample.boxes_xyxy)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(sample.class_ids[index]) + 1,
                    "bbox": box_xywh.tolist(),
                    "area": float(sample.areas[index]),
                    "iscrowd": int(sample.is_crowd[index]),
                }
            )
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": index} for index in range(len(samples))],
        "categories": [{"id": index + 1} for index in range(num_classes)],
        "annotations": annotations,
    }
    category_ids = tuple(range(1, num_classes + 1))
    rows = [row for index, found in enumerate(detections) for row in found.to_coco(index, category_ids)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats, evaluator.eval["precision"]


@pytest.mark.parametrize(
    ("num_images", "num_classes", "detections_per_image"),
    [(40, 3, 30), (25, 7, 150), (3, 1, 400), (60, 5, 4)],
)
def test_agrees_with_pycocotools(num_images: int, num_classes: int, detections_per_image: int) -> None:
    samples, detections = generate(
        num_images=num_images, num_classes=num_classes, detections_per_image=detections_per_image, seed=num_images
    )
    expected, precision = pycocotools_stats(samples, detections, num_classes)
    result = score(
        Predictions(samples=tuple(samples), detections=tuple(detections)), dataset_of(samples, NAMES[:num_classes])
    )
    got = [getattr(result, field) for field in COCO_FIELDS]
    assert expected.max() > 0.05  # else nothing is compared
    np.testing.assert_allclose([-1 if value is None else value for value in got], expected, atol=COCO_METRICS, rtol=0)
    for index, row in enumerate(result.per_class):
        of_class = precision[:, :, index, 0, 2]
        if (of_class == -1).all():
            assert row.map is None
        else:
            assert row.map == pytest.approx(of_class.mean(), abs=COCO_METRICS)
            assert row.map50 == pytest.approx(of_class[0].mean(), abs=COCO_METRICS)


def test_agrees_with_pycocotools_on_real_annotations(shared_dir: Path) -> None:
    """Crowds, segment areas and sparse category ids of COCO, with detections made from the annotations."""
    from boxwright.data import load_dataset

    dataset = load_dataset(shared_dir / "data" / "coco-tiny", "val")
    rng = np.random.default_rng(5)
    detections = []
    for sample in dataset.samples:
        keep = rng.random(len(sample)) < 0.7
        jittered = sample.boxes_xyxy[keep] + rng.normal(0, 4, (int(keep.sum()), 4))
        detections.append(
            detections_of(jittered.tolist(), rng.random(len(jittered)).tolist(), sample.class_ids[keep].tolist())
        )
    expected, _ = pycocotools_stats(list(dataset.samples), detections, len(dataset.class_names))
    result = score(Predictions(samples=dataset.samples, detections=tuple(detections)), dataset)
    np.testing.assert_allclose([getattr(result, field) for field in COCO_FIELDS], expected, atol=COCO_METRICS, rtol=0)
    assert 0.1 < expected[0] < 0.9


def test_what_cannot_be_measured_is_none_and_nothing_found_is_zero() -> None:
    samples = [sample_of([[10, 10, 20, 20]], [0]), sample_of([], [], image_id=2)]
    result = score(
        Predictions(samples=tuple(samples), detections=(Detections.empty(), Detections.empty())),
        dataset_of(samples, NAMES[:2]),
    )
    assert (result.map, result.map50, result.map_small, result.ar) == (0.0, 0.0, 0.0, 0.0)
    assert (result.map_medium, result.map_large, result.ar_large) == (None, None, None)
    assert [row.map for row in result.per_class] == [0.0, None]
    assert [row.num_boxes for row in result.per_class] == [1, 0]
    assert (result.num_images, result.num_boxes, result.num_detections) == (2, 1, 0)
    assert result.voc_ap50_area == 0.0


class FakeDetector:
    """Finds one box of each of its classes in every image but black ones."""

    def __init__(self, class_names: tuple[str, ...]) -> None:
        self.class_names = class_names

    def __call__(self, image: np.ndarray) -> Detections:
        if image.max() == 0:
            raise ImageError("image", expected="light", got="darkness", fix="switch it on")
        count = len(self.class_names)
        return detections_of([[10, 20, 110, 90]] * count, [0.9] * count, list(range(count)))


def write_images(folder: Path, brightnesses: list[int | None]) -> list[Sample]:
    samples = []
    for index, brightness in enumerate(brightnesses):
        path = folder / f"{index}.png"
        if brightness is None:
            path.write_bytes(b"no image at all")
        else:
            cv2.imwrite(str(path), np.full((*SIZE_HW, 3), brightness, np.uint8))
        samples.append(sample_of([[10, 20, 110, 90]], [0], image_id=index + 1, image_path=path))
    return samples


def test_images_that_cannot_be_used_are_reported_and_left_out(tmp_path: Path) -> None:
    dataset = dataset_of(write_images(tmp_path, [200, None, 0, 90]), ("cat",), root=tmp_path)
    calls = []
    result = evaluate(FakeDetector(("cat",)), dataset, on_progress=lambda done, total: calls.append((done, total)))
    assert result.map == pytest.approx(1.0)
    assert (result.num_images, result.num_boxes) == (2, 2)
    assert [entry.file for entry in result.unreadable] == ["1.png", "2.png"]
    assert result.unreadable[1].reason == "darkness"
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_no_image_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    dataset = dataset_of(write_images(tmp_path, [None, None]), ("cat",), root=tmp_path)
    with pytest.raises(DatasetError, match=r"expected at least one image that can be read.*0\.png"):
        evaluate(FakeDetector(("cat",)), dataset)


@pytest.mark.parametrize(
    ("class_names", "expected_map", "ignored"),
    [
        (("cat",), 1.0, ()),
        (("dog", "cat"), 1.0, ("dog",)),  # the dog's boxes count for nothing
        (("cat", "mouse", "dog"), 1.0, ("mouse", "dog")),
    ],
)
def test_classes_are_matched_by_name(
    tmp_path: Path, class_names: tuple[str, ...], expected_map: float, ignored: tuple[str, ...]
) -> None:
    image_path = write_images(tmp_path, [200])[0].image_path
    dataset = dataset_of([sample_of([[10, 20, 110, 90]], [1], image_path=image_path)], ("horse", "cat"), root=tmp_path)
    result = evaluate(FakeDetector(class_names), dataset)
    assert result.map == pytest.approx(expected_map)
    assert result.ignored_classes == ignored
    assert result.num_detections == 1


def test_a_plain_function_uses_the_class_ids_of_the_data_set(tmp_path: Path) -> None:
    dataset = dataset_of(write_images(tmp_path, [200]), ("horse", "cat"), root=tmp_path)
    result = evaluate(lambda image: detections_of([[10, 20, 110, 90]], [0.5], [0]), dataset)
    assert result.map == pytest.approx(1.0)


def test_boxes_of_a_class_that_the_model_does_not_know_are_an_error(tmp_path: Path) -> None:
    dataset = dataset_of(write_images(tmp_path, [200]), ("horse", "cat"), root=tmp_path)
    expected = r"class names: expected classes that the model knows: cat, got .*horse.*; where .* --labels NAME"
    with pytest.raises(DatasetError, match=expected):
        evaluate(FakeDetector(("cat",)), dataset)


@pytest.mark.parametrize("samples", [[], [sample_of([], [])], [sample_of([[0, 0, 9, 9]], [0], is_crowd=[True])]])
def test_a_data_set_without_images_or_boxes_is_an_error(samples: list[Sample]) -> None:
    with pytest.raises(DatasetError, match="expected at least one"):
        evaluate(FakeDetector(("cat",)), dataset_of(samples, ("cat",)))


def test_voc_average_precision_by_hand() -> None:
    """Four boxes; detections by falling score: hit, miss, hit, doubled, on a difficult box, hit.

    Recall 1/4, 1/4, 2/4, 2/4, 3/4; precision 1, 1/2, 2/3, 2/4, 3/5. The area with the precision made monotone is
    1/4 * 1 + 1/4 * 2/3 + 1/4 * 3/5; the eleven points are 1 at 0, 0.1 and 0.2, 2/3 at 0.3 to 0.5, 3/5 at 0.6 and 0.7.
    """
    box = [[0, 0, 10, 10], [100, 0, 110, 10], [200, 0, 210, 10], [300, 0, 310, 10], [0, 100, 10, 110]]
    samples = [sample_of(box, [0] * 5, is_crowd=[False] * 4 + [True])]
    found = detections_of(
        [box[0], [50, 50, 60, 60], box[1], box[1], box[4], box[2]], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0] * 6
    )
    metrics = compute_voc_metrics(samples, [found], num_classes=2)
    assert metrics.area[0] == pytest.approx((1 + 2 / 3 + 3 / 5) / 4)
    assert metrics.eleven_point[0] == pytest.approx((3 * 1 + 3 * 2 / 3 + 2 * 3 / 5) / 11)
    assert np.isnan(metrics.area[1]) and np.isnan(metrics.eleven_point[1])


def test_voc_hits_begin_at_an_overlap_of_exactly_one_half() -> None:
    samples = [sample_of([[0, 0, 10, 10]], [0])]
    at_half = detections_of([[0, 0, 10, 5]], [0.9], [0])
    below = detections_of([[0, 0, 10, 4.9]], [0.9], [0])
    assert compute_voc_metrics(samples, [at_half], num_classes=1).area[0] == 1.0
    assert compute_voc_metrics(samples, [below], num_classes=1).area[0] == 0.0


def test_confusion_matrix_by_hand() -> None:
    boxes = [[0, 0, 40, 40], [100, 0, 140, 40], [200, 0, 240, 40], [0, 200, 200, 300]]
    samples = [sample_of(boxes, [0, 0, 1, 1], is_crowd=[False, False, False, True]), sample_of([], [], image_id=2)]
    detections = [
        detections_of(
            [boxes[0], boxes[0], boxes[1], [10, 210, 60, 260], [300, 300, 320, 320], boxes[2]],
            [0.9, 0.8, 0.7, 0.6, 0.5, 0.2],
            [0, 1, 1, 1, 0, 1],
        ),
        detections_of([[5, 5, 9, 9]], [0.9], [1]),
    ]
    # Right once; taken for class 1 once; the third missed since its detection scores too low. Of nothing: the second
    # detection of the first box, the one in the corner, and the one in the empty image; the crowd's is left out.
    expected = [[1, 1, 0], [0, 0, 1], [1, 2, 0]]
    assert confusion_matrix(samples, detections, num_classes=2, score_threshold=0.25).tolist() == expected
