"""The compiled letterbox against OpenCV and numpy."""

from __future__ import annotations

import dataclasses
import platform
from typing import Any

import cv2
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from boxwright.core import kernels
from boxwright.core import letterbox as reference_module
from boxwright.core.preprocess import ImageTransform, Preprocess
from tolerances import BOX_COORDINATES, GREY_LEVELS

INSTRUCTION_SETS = kernels.instruction_sets()
pytestmark = pytest.mark.skipif(not INSTRUCTION_SETS, reason="the compiled kernels are not built")

SCALE, BIAS = (1 / 58.4, 1 / 57.1, 1 / 57.4), (-2.1, -2.0, -1.8)
# OpenCV's own code for other processors rounds in its own ways.
IS_EXACT = platform.machine() == "x86_64"


def arguments(
    resized_hw: tuple[int, int], offset_tl: tuple[int, int], size_hw: tuple[int, int], **changes: Any
) -> dict[str, Any]:
    return {
        "resized_hw": resized_hw,
        "offset_tl": offset_tl,
        "size_hw": size_hw,
        "pad_value": (114.0, 0.0, 50.5),
        "scale": SCALE,
        "bias": BIAS,
        "swap_channels": True,
        **changes,
    }


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_like_reference(image: np.ndarray, given_arguments: dict[str, Any]) -> None:
    expected = reference_module.letterbox(image, **given_arguments)
    for name in INSTRUCTION_SETS:
        actual = kernels.letterbox(image, **given_arguments, instruction_set=name)
        if IS_EXACT:
            np.testing.assert_array_equal(actual, expected, err_msg=name)
        levels = np.abs(actual - expected) / np.array(given_arguments["scale"], np.float32)[:, None, None]
        assert levels.max(initial=0) <= GREY_LEVELS + 1e-3, name


@pytest.mark.parametrize(
    ("image_hw", "resized_hw", "offset_tl", "size_hw"),
    [
        ((720, 1280), (360, 640), (140, 0), (640, 640)),
        ((480, 640), (312, 416), (0, 0), (416, 416)),
        ((375, 500), (480, 640), (80, 0), (640, 640)),
        ((64, 64), (64, 64), (0, 0), (64, 64)),
        ((77, 101), (244, 320), (3, 0), (247, 331)),
        ((333, 251), (48, 64), (1, 6), (64, 71)),
        ((1000, 37), (416, 15), (0, 200), (416, 416)),
        ((2, 2), (5, 7), (2, 1), (9, 9)),
        ((1, 1), (5, 7), (2, 1), (9, 9)),
        ((3, 1), (5, 7), (2, 1), (9, 9)),
        ((1, 9), (5, 7), (2, 2), (9, 9)),
        ((9, 9), (1, 1), (0, 0), (1, 1)),
        ((50, 60), (200, 3), (0, 0), (200, 3)),
    ],
)
@pytest.mark.parametrize("swap_channels", [False, True])
def test_sizes(image_hw: Any, resized_hw: Any, offset_tl: Any, size_hw: Any, swap_channels: bool) -> None:
    assert_like_reference(
        random_image(*image_hw), arguments(resized_hw, offset_tl, size_hw, swap_channels=swap_channels)
    )


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    image_hw=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    resized_hw=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    offset_tl=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    rest=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    swap_channels=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_all_sizes(image_hw: Any, resized_hw: Any, offset_tl: Any, rest: Any, swap_channels: bool, seed: int) -> None:
    size_hw = tuple(r + o + more for r, o, more in zip(resized_hw, offset_tl, rest, strict=True))
    assert_like_reference(
        random_image(*image_hw, seed), arguments(resized_hw, offset_tl, size_hw, swap_channels=swap_channels)
    )


def test_extremes_do_not_wrap() -> None:
    for value in (0, 255):
        image = np.full((33, 47, 3), value, np.uint8)
        result = kernels.letterbox(image, **arguments((50, 60), (0, 0), (50, 60), scale=(1.0,) * 3, bias=(0.0,) * 3))
        assert (result == value).all()


@pytest.mark.parametrize(
    "view",
    [
        lambda image: image[3:60, 5:70],
        lambda image: image[::-1],
        lambda image: image[::2],
        lambda image: image[:, ::-1],
        lambda image: image[:, ::3],
        lambda image: image[..., ::-1],
        lambda image: np.asfortranarray(image),
        lambda image: np.lib.stride_tricks.as_strided(image[0], (40, image.shape[1], 3), (0, 3, 1)),
    ],
    ids=["crop", "upside down", "every second row", "mirrored", "every third column", "BGR", "by columns", "one row"],
)
def test_any_stride(view: Any) -> None:
    image = view(random_image(80, 90))
    assert_like_reference(image, arguments((40, 50), (2, 3), (44, 56)))


def test_read_only_pixels() -> None:
    image = random_image(20, 30)
    image.flags.writeable = False
    assert_like_reference(image, arguments((40, 60), (0, 0), (40, 60)))


def test_the_last_bytes_of_an_image_are_not_overrun() -> None:
    """Pixels at the very end of a buffer, whose page ends there, are read and nothing after them."""
    import mmap

    num_bytes = mmap.PAGESIZE
    with mmap.mmap(-1, num_bytes) as pages:
        width = 5
        height = num_bytes // (3 * width)
        buffer = np.frombuffer(pages, np.uint8)
        image = buffer[num_bytes - 3 * width * height :].reshape(height, width, 3)
        image[:] = random_image(height, width)
        assert_like_reference(image, arguments((60, 40), (0, 0), (60, 40)))
        del image, buffer


@pytest.mark.parametrize("form", ["dense", "row of a batch", "with gaps"])
def test_out(form: str) -> None:
    image, given_arguments = random_image(30, 40), arguments((60, 80), (2, 0), (64, 80))
    expected = kernels.letterbox(image, **given_arguments)
    out = {
        "dense": np.full((3, 64, 80), np.nan, np.float32),
        "row of a batch": np.full((2, 3, 64, 80), np.nan, np.float32)[1],
        "with gaps": np.full((3, 64, 99), np.nan, np.float32)[:, :, :80],
    }[form]
    assert kernels.letterbox(image, **given_arguments, out=out) is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("interpolation", ["area", "cubic"])
def test_what_is_not_compiled_is_the_references(interpolation: str) -> None:
    image, given_arguments = random_image(30, 40), arguments((20, 25), (2, 0), (24, 25), interpolation=interpolation)
    np.testing.assert_array_equal(
        kernels.letterbox(image, **given_arguments), reference_module.letterbox(image, **given_arguments)
    )
    in_float = image.astype(np.float32)
    linear = arguments((20, 25), (2, 0), (24, 25))
    np.testing.assert_array_equal(kernels.letterbox(in_float, **linear), reference_module.letterbox(in_float, **linear))


@pytest.mark.parametrize("resize", ["letterbox", "letterbox_topleft", "stretch"])
@pytest.mark.parametrize("size_hw", [(64, 96), (61, 43)])
def test_preprocess_uses_it(resize: str, size_hw: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess = Preprocess(
        size_hw=size_hw,
        resize=resize,  # type: ignore[arg-type]
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.25),
    )
    images = [random_image(50, 70), random_image(33, 21, seed=1)]
    compiled = preprocess.apply_batch(images)
    monkeypatch.setattr(kernels, "_native", None)
    plain = preprocess.apply_batch(images)
    tolerance = 0 if IS_EXACT else GREY_LEVELS / 255 / 0.2
    np.testing.assert_allclose(compiled.images, plain.images, rtol=0, atol=tolerance)
    assert compiled.transforms == plain.transforms


def test_the_way_back_for_boxes() -> None:
    from boxwright.core import _native

    random = np.random.default_rng(5)
    for image_hw, resized_hw, (top, left) in [((375, 500), (480, 640), (80, 0)), ((77, 31), (64, 26), (0, 19))]:
        transform = ImageTransform(image_size_hw=image_hw, resized_hw=resized_hw, offset_xy=(left, top))
        boxes = random.uniform(-50, 700, (40, 4)).astype(np.float32)
        mapped = np.empty_like(boxes)
        _native.boxes_to_image(boxes, mapped, resized_hw, (top, left), image_hw)
        expected = transform.to_original(boxes)
        np.testing.assert_allclose(mapped, expected, rtol=BOX_COORDINATES, atol=BOX_COORDINATES * max(image_hw))
        assert mapped.min() == 0
        assert (mapped[:, 2] <= image_hw[1]).all()
        assert (mapped[:, 3] <= image_hw[0]).all()


BAD = arguments((40, 50), (2, 3), (44, 56))


@pytest.mark.parametrize(
    ("changes", "image", "message"),
    [
        ({"resized_hw": (43, 50)}, random_image(9, 9), "placement"),
        ({"resized_hw": (40, 54)}, random_image(9, 9), "placement"),
        ({"offset_tl": (-1, 0)}, random_image(9, 9), "placement"),
        ({"offset_tl": (2**40, 0)}, random_image(9, 9), "placement"),
        ({"resized_hw": (0, 5)}, random_image(9, 9), "placement"),
        ({"size_hw": (0, 56)}, random_image(9, 9), "canvas"),
        ({}, np.zeros((0, 9, 3), np.uint8), "image"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=rf"letterbox {message}: expected .*, got .*; "):
        kernels.letterbox(image, **{**BAD, **changes})


def test_the_reference_is_what_opencv_and_numpy_make_of_it() -> None:
    """The reference itself, once, step by step."""
    image, given_arguments = random_image(30, 40), arguments((45, 60), (2, 1), (50, 64), pad_value=(114.0, 0.0, 50.0))
    padded = cv2.copyMakeBorder(cv2.resize(image, (60, 45)), 2, 3, 1, 3, cv2.BORDER_CONSTANT, value=(50, 0, 114))
    rgb = padded[..., ::-1].transpose(2, 0, 1).astype(np.float32)
    expected = rgb * np.array(SCALE, np.float32)[:, None, None] + np.array(BIAS, np.float32)[:, None, None]
    np.testing.assert_array_equal(reference_module.letterbox(image, **given_arguments), expected)


def test_a_preprocess_in_float_is_left_to_the_reference() -> None:
    preprocess = dataclasses.replace(Preprocess(size_hw=(32, 48)), resize_in_float=True)
    result, _ = preprocess.apply(random_image(20, 20))
    assert result.shape == (3, 32, 48)
