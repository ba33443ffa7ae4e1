"""Detections drawn into an image for people to look at."""

from __future__ import annotations

import colorsys
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from boxwright.core.detections import Detections

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

_FONT = cv2.FONT_HERSHEY_SIMPLEX
# Height in pixels of a capital letter at font scale 1.
_CAPITAL_HEIGHT = 21
# Smaller letters cannot be read; an image too small for them is enlarged.
_SMALLEST_CAPITAL = 8
_SHORTEST_SIDE = 240
# Dark enough to be seen on a white background, light enough on a black one, and apart from their neighbours.
_SATURATIONS, _VALUES = (0.85, 0.55, 1.0), (0.95, 0.75, 0.85)
_GOLDEN_RATIO = 0.618033988749895


class _Rectangle(NamedTuple):
    left: int
    top: int
    right: int
    bottom: int

    def area_shared_with(self, other: _Rectangle) -> int:
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0, width) * max(0, height)


class _Style(NamedTuple):
    """Sizes in pixels that suit an image."""

    line: int
    font_scale: float
    font_thickness: int
    margin: int


def draw_detections(image: Image, detections: Detections, class_names: tuple[str, ...]) -> Image:
    """A copy of an image with a box and a label for every detection.

    Lines and letters grow with the image. An image whose shorter side is below 240 pixels is enlarged by a whole
    factor, since its labels could not be read otherwise.

    Args:
        image: (H, W, 3) uint8, BGR.
        detections: in pixels of the image.
        class_names: in the order of the class ids.

    Returns:
        (H', W', 3) uint8, BGR.
    """
    factor = max(1, -(-_SHORTEST_SIDE // min(image.shape[:2])))
    canvas: Image = image.repeat(factor, axis=0).repeat(factor, axis=1)
    style = _style_for(canvas)
    boxes = [_Rectangle(*box) for box in np.rint(detections.boxes_xyxy * factor).astype(int).tolist()]
    rows = list(zip(boxes, detections.scores.tolist(), detections.class_ids.tolist(), strict=True))
    for box, _, class_id in reversed(rows):  # the best last, so that it lies on top
        _draw_box(canvas, box, class_colour(class_id), style)
    taken: list[_Rectangle] = []
    placed = []
    for box, score, class_id in rows:  # the best first, so that its label gets the best place
        text = f"{_ascii_name(class_names[class_id], class_id)} {score:.2f}"
        label = _place_label(text, box, taken, canvas, style)
        taken.append(label)
        placed.append((label, text, class_colour(class_id)))
    for label, text, colour in reversed(placed):
        _draw_label(canvas, label, text, colour, style)
    return canvas


def class_colour(class_id: int) -> Colour:
    """The colour (B, G, R) of a class: always the same, and unlike those of the classes beside it."""
    # Steps of the golden ratio never come near an earlier hue for long.
    hue = (0.02 + class_id * _GOLDEN_RATIO) % 1.0
    shade = (class_id // 3) % 3
    red, green, blue = colorsys.hsv_to_rgb(hue, _SATURATIONS[shade], _VALUES[shade])
    return round(blue * 255), round(green * 255), round(red * 255)


def _style_for(canvas: Image) -> _Style:
    mean_side = (canvas.shape[0] + canvas.shape[1]) / 2
    capital = max(_SMALLEST_CAPITAL, mean_side / 62)
    return _Style(
        line=max(1, round(mean_side / 300)),
        font_scale=capital / _CAPITAL_HEIGHT,
        font_thickness=max(1, round(capital / 11)),
        margin=max(2, round(capital / 3)),
    )


def _draw_box(canvas: Image, box: _Rectangle, colour: Colour, style: _Style) -> None:
    corners = (box.left, box.top), (box.right, box.bottom)
    # A thin dark rim keeps the line visible on a background of its own colour.
    cv2.rectangle(canvas, *corners, _rim_of(colour), style.line + 2, cv2.LINE_AA)
    cv2.rectangle(canvas, *corners, colour, style.line, cv2.LINE_AA)


def _place_label(text: str, box: _Rectangle, taken: list[_Rectangle], canvas: Image, style: _Style) -> _Rectangle:
    """Where the label covers other labels least, the usual place above the box's left corner first."""
    (text_width, text_height), baseline = cv2.getTextSize(text, _FONT, style.font_scale, style.font_thickness)
    width = text_width + 2 * style.margin
    height = text_height + baseline // 2 + 2 * style.margin
    places = [_moved_inside(place, canvas) for place in _label_places(box, width, height)]
    covered = [sum(place.area_shared_with(other) for other in taken) for place in places]
    return places[covered.index(min(covered))]


def _label_places(box: _Rectangle, width: int, height: int) -> Iterator[_Rectangle]:
    """Above the box, inside it, below it; at its left and at its right."""
    lefts = (box.left, box.right - width)
    tops = (box.top - height, box.top, box.bottom, box.bottom - height)
    for top in tops:
        for left in lefts:
            yield _Rectangle(left, top, left + width, top + height)


def _moved_inside(place: _Rectangle, canvas: Image) -> _Rectangle:
    height, width = place.bottom - place.top, place.right - place.left
    left = max(0, min(place.left, canvas.shape[1] - width))
    top = max(0, min(place.top, canvas.shape[0] - height))
    return _Rectangle(left, top, left + width, top + height)


def _draw_label(canvas: Image, label: _Rectangle, text: str, colour: Colour, style: _Style) -> None:
    cv2.rectangle(canvas, (label.left, label.top), (label.right - 1, label.bottom - 1), colour, cv2.FILLED)
    cv2.rectangle(canvas, (label.left, label.top), (label.right - 1, label.bottom - 1), _rim_of(colour), 1)
    (_, text_height), _ = cv2.getTextSize(text, _FONT, style.font_scale, style.font_thickness)
    origin = label.left + style.margin, label.top + style.margin + text_height
    cv2.putText(canvas, text, origin, _FONT, style.font_scale, _letters_on(colour), style.font_thickness, cv2.LINE_AA)


def _rim_of(colour: Colour) -> Colour:
    return colour[0] // 4, colour[1] // 4, colour[2] // 4


def _letters_on(colour: Colour) -> Colour:
    """Black or white, whichever stands out more. Source: the luma weights of ITU-R BT.601."""
    luma = 0.114 * colour[0] + 0.587 * colour[1] + 0.299 * colour[2]
    return (0, 0, 0) if luma > 130 else (255, 255, 255)


def _ascii_name(name: str, class_id: int) -> str:
    """The name in the letters that OpenCV's font has; accents are dropped, other scripts become the class's number."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().strip()
    return plain or f"class {class_id}"
