"""Textured backgrounds for generated images, computed in integers."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from boxwright.core.images import Image

Random = np.random.Generator
Color = NDArray[np.int32]  # (3,) BGR, 0 to 255
Field = NDArray[np.int32]  # (H, W), 0 to 255

_MAX_COLOR_STEP = 55  # between the two colours of a background, per channel


def random_color(random: Random, saturation: tuple[float, float], value: tuple[float, float]) -> Color:
    """A BGR colour of any hue with saturation and value from these ranges."""
    red, green, blue = colorsys.hsv_to_rgb(random.uniform(), random.uniform(*saturation), random.uniform(*value))
    return np.array([round(255 * blue), round(255 * green), round(255 * red)], np.int32)


def random_background(random: Random, size_hw: tuple[int, int]) -> Image:
    """A background of a random texture in two similar colours.

    Args:
        random: what it is drawn from.
        size_hw: in pixels.

    Returns:
        (H, W, 3) uint8, BGR.
    """
    texture = _TEXTURES[random.integers(len(_TEXTURES))]
    mixed = (3 * texture(random, size_hw) + _clouds(random, size_hw)) // 4
    color = random_color(random, (0.05, 0.6), (0.25, 0.85))
    step = random.integers(-_MAX_COLOR_STEP, _MAX_COLOR_STEP + 1, 3)
    image = color + step * mixed[..., None] // 255  # (H, W, 3)
    grain = random.integers(-6, 7, size_hw)[..., None]
    background: Image = np.clip(image + grain, 0, 255).astype(np.uint8)
    return background


def wave(phase: NDArray[np.int32]) -> Field:
    """A triangle wave, 0 to 255, of period 512."""
    return np.minimum(np.abs(phase % 512 - 256), 255).astype(np.int32)


def _noise(random: Random, size_hw: tuple[int, int], cell: int) -> Field:
    """Random values on a grid of `cell` pixels, linear between; OpenCV's exact resize gives the same on any CPU."""
    height, width = size_hw
    rows, columns = height // cell + 2, width // cell + 2
    grid = random.integers(0, 256, (rows, columns), dtype=np.uint8)
    large = cv2.resize(grid, (columns * cell, rows * cell), interpolation=cv2.INTER_LINEAR_EXACT)
    return large[:height, :width].astype(np.int32)


def _clouds(random: Random, size_hw: tuple[int, int]) -> Field:
    cell = max(8, min(size_hw) // 3)
    return (
        4 * _noise(random, size_hw, cell) + 2 * _noise(random, size_hw, cell // 2) + _noise(random, size_hw, 3)
    ) // 7


def _speckles(random: Random, size_hw: tuple[int, int]) -> Field:
    return (_noise(random, size_hw, 2) + _noise(random, size_hw, 5)) // 2


def _slanted_phase(random: Random, size_hw: tuple[int, int]) -> Field:
    """A phase that grows along a random direction, with a period of 15 pixels or more."""
    height, width = size_hw
    step_x, step_y = random.integers(-24, 25, 2)
    phase: Field = (step_x * np.arange(width)[None, :] + step_y * np.arange(height)[:, None]).astype(np.int32)
    return phase


def _stripes(random: Random, size_hw: tuple[int, int]) -> Field:
    return wave(_slanted_phase(random, size_hw))


def _grain(random: Random, size_hw: tuple[int, int]) -> Field:
    """Stripes bent by clouds, as in wood."""
    return wave(_slanted_phase(random, size_hw) + 4 * _clouds(random, size_hw))


def _tiles(random: Random, size_hw: tuple[int, int]) -> Field:
    return (wave(_slanted_phase(random, size_hw)) + wave(_slanted_phase(random, size_hw))) // 2


_TEXTURES: tuple[Callable[[Random, tuple[int, int]], Field], ...] = (_clouds, _speckles, _stripes, _grain, _tiles)
