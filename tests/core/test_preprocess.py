"""Preprocessing: where the image lies, what the pixels become, and the way back."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from boxwright.core.errors import ImageError, InputError
from boxwright.core.preprocess import ImageTransform, Preprocess, check_image
from boxwright.core.preprocess_presets import PRESETS, preset

GENERATOR = np.random.default_rng(0)


def picture(height: int, width: int) -> np.ndarray:
    return GENERATOR.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("preprocess", "image_hw", "resized_hw", "offset_xy", "canvas_hw"),
    [
        (Preprocess(size_hw=(416, 416)), (480, 640), (312, 416), (0, 52), (416, 416)),
        (Preprocess(size_hw=(416, 416)), (333, 500), (277, 416), (0, 69), (416, 416)),
        (Preprocess(size_hw=(320, 224)), (100, 50), (320, 160), (32, 0), (320, 224)),
        (Preprocess(size_hw=(416, 416), resize="letterbox_topleft"), (333, 500), (277, 416), (0, 0), (416, 416)),
        (Preprocess(size_hw=(416, 416), resize="letterbox_topleft"), (427, 640), (277, 416), (0, 0), (416, 416)),
        (Preprocess(size_hw=(300, 200), resize="stretch"), (31, 77), (300, 200), (0, 0), (300, 200)),
        (
            Preprocess(size_hw=None, resize="shortest_edge", shortest_edge=800, max_size=1333, divisor=32),
            (480, 640),
            (800, 1066),
            (0, 0),
            (800, 1088),
        ),
        (
            Preprocess(size_hw=None, resize="shortest_edge", shortest_edge=800, max_size=1333, divisor=32),
            (200, 640),
            (416, 1333),
            (0, 0),
            (416, 1344),
        ),
        (
            Preprocess(size_hw=(320, 320), resize="shortest_edge", shortest_edge=320, max_size=640),
            (200, 400),
            (160, 320),
            (0, 0),
            (320, 320),
        ),
    ],
)
def test_plan(
    preprocess: Preprocess,
    image_hw: tuple[int, int],
    resized_hw: tuple[int, int],
    offset_xy: tuple[int, int],
    canvas_hw: tuple[int, int],
) -> None:
    tensor, transform = preprocess.apply(picture(*image_hw))
    assert transform == ImageTransform(image_size_hw=image_hw, resized_hw=resized_hw, offset_xy=offset_xy)
    assert tensor.shape == (3, *canvas_hw)
    assert tensor.dtype == np.float32


@pytest.mark.parametrize("resize", ["letterbox", "letterbox_topleft", "stretch"])
@pytest.mark.parametrize("image_hw", [(333, 517), (1080, 1920), (61, 40)])
def test_boxes_come_back_exactly(resize: str, image_hw: tuple[int, int]) -> None:
    transform = Preprocess(size_hw=(256, 416), resize=resize).plan(image_hw)
    corners = GENERATOR.uniform(0, 1, (50, 2, 2)).astype(np.float32)
    corners.sort(axis=1)
    boxes_xyxy = (corners.reshape(50, 4) * np.array([image_hw[1], image_hw[0]] * 2)).astype(np.float32)
    np.testing.assert_allclose(transform.to_original(transform.to_network(boxes_xyxy)), boxes_xyxy, atol=1e-3)


def test_boxes_outside_are_clipped_to_the_image() -> None:
    transform = Preprocess(size_hw=(100, 100)).plan((50, 100))
    boxes_xyxy = np.array([[-10, 0, 120, 100]], dtype=np.float32)
    assert transform.to_original(boxes_xyxy).tolist() == [[0, 0, 100, 50]]


def test_an_image_corner_maps_to_the_corner_of_the_resized_image() -> None:
    transform = Preprocess(size_hw=(416, 416)).plan((333, 500))
    corner = transform.to_network(np.array([[0, 0, 500, 333]], dtype=np.float32))
    np.testing.assert_allclose(corner[0], [0, 69, 416, 69 + 277], atol=1e-4)


def test_pixels_without_a_resize_are_normalised_exactly() -> None:
    preprocess = Preprocess(
        size_hw=(6, 5), resize="letterbox_topleft", pad_value=(10, 20, 30), mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.2)
    )
    image = picture(6, 3)
    # 6 x 3 into 6 x 5: no scaling, two columns of padding.
    tensor, _ = preprocess.apply(image)
    red_green_blue = image[:, :, ::-1].astype(np.float64) / 255
    expected = (red_green_blue - [0.1, 0.2, 0.3]) / [0.5, 0.4, 0.2]
    np.testing.assert_allclose(tensor[:, :, :3], expected.transpose(2, 0, 1), atol=1e-5)
    padding = (np.array([10, 20, 30]) / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.4, 0.2]
    np.testing.assert_allclose(tensor[:, :, 3:], np.broadcast_to(padding[:, None, None], (3, 6, 2)), atol=1e-5)


def test_bgr_input_keeps_the_order() -> None:
    preprocess = Preprocess(size_hw=(4, 4), resize="stretch", channel_order="BGR", scale=1.0)
    image = picture(4, 4)
    np.testing.assert_array_equal(preprocess.apply(image)[0], image.transpose(2, 0, 1).astype(np.float32))


def test_resizing_in_float_does_not_round_to_grey_levels() -> None:
    image = picture(10, 10)
    options = {"size_hw": (7, 7), "resize": "stretch", "scale": 1.0}
    in_float = Preprocess(**options, resize_in_float=True).apply(image)[0]
    in_uint8 = Preprocess(**options).apply(image)[0]
    assert np.abs(in_float - np.round(in_float)).max() > 0.1
    np.testing.assert_array_equal(in_uint8, np.round(in_uint8))
    np.testing.assert_allclose(in_float, in_uint8, atol=1.0)


def test_a_batch_is_padded_to_its_largest_and_masked() -> None:
    preprocess = Preprocess(
        size_hw=None, resize="shortest_edge", shortest_edge=32, max_size=64, divisor=8, pixel_mask=True
    )
    batch = preprocess.apply_batch([picture(32, 50), picture(60, 32)])
    assert batch.images.shape == (2, 3, 64, 56)
    assert batch.pixel_mask is not None
    assert batch.pixel_mask.sum(axis=(1, 2)).tolist() == [32 * 50, 60 * 32]
    assert batch.pixel_mask[0, 31, 49] == 1 and batch.pixel_mask[0, 32, 0] == 0


def test_non_contiguous_views_give_the_same_as_copies() -> None:
    big = picture(90, 120)
    view = big[10:80, 5:105]
    preprocess = Preprocess(size_hw=(64, 64))
    np.testing.assert_array_equal(preprocess.apply(view)[0], preprocess.apply(view.copy())[0])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        [[1, 2, 3]],
        None,
    ],
)
def test_what_is_no_image_is_refused(image: object) -> None:
    with pytest.raises(ImageError, match="BGR"):
        check_image(image)


@pytest.mark.parametrize("image_hw", [(1, 1), (1, 500), (50, 20000)])
def test_images_too_small_or_thin_are_refused(image_hw: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="pixels"):
        Preprocess(size_hw=(416, 416)).apply(np.zeros((*image_hw, 3), np.uint8))


@pytest.mark.parametrize(
    "options",
    [
        {"size_hw": (416, 416), "resize": "crop"},
        {"size_hw": (0, 416)},
        {"size_hw": None},
        {"size_hw": None, "resize": "shortest_edge"},
        {"size_hw": (4, 4), "std": (1, 0, 1)},
        {"size_hw": (4, 4), "mean": (1, 0)},
        {"size_hw": (4, 4), "channel_order": "GRB"},
        {"size_hw": (4, 4), "scale": 0},
    ],
)
def test_wrong_settings_are_refused(options: dict) -> None:
    with pytest.raises(InputError, match="Preprocess"):
        Preprocess(**options)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_apply_to_any_picture(name: str) -> None:
    tensor, _ = preset(name, (64, 96)).apply(picture(50, 70))
    assert tensor.shape == (3, 64, 96)
    assert np.isfinite(tensor).all()


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="yolox-legacy"):
        preset("yolo", (416, 416))


def test_plans_are_remembered_but_not_for_ever() -> None:
    preprocess = Preprocess(size_hw=(64, 64))
    first = preprocess.plan((48, 100))
    assert preprocess.plan((48, 100)) is first
    for width in range(40, 1040):
        assert preprocess.plan((500, width)) == Preprocess(size_hw=(64, 64)).plan((500, width))
    assert len(preprocess._plans) <= 256
    assert preprocess == Preprocess(size_hw=(64, 64))
    assert pickle.loads(pickle.dumps(preprocess)) == preprocess
