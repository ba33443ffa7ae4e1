"""What the user should know of the images and of the float model that a calibration began with."""

from __future__ import annotations

from collections.abc import Iterator

from boxwright.calibration.images import FEWEST_IMAGES, CalibrationImages

# Below this mAP a difference says nothing, and it is hardly ever the detector's fault.
_LEAST_MAP = 0.01


def image_warnings(chosen: CalibrationImages, num_calibration: int) -> Iterator[str]:
    """Of images that ranges should not hang on."""
    if num_calibration < FEWEST_IMAGES:
        yield (
            f"{num_calibration} images are few: ranges then hang on what these happen to show; "
            f"give at least {FEWEST_IMAGES}"
        )
    if chosen.blank:
        yield f"{len(chosen.blank)} images show one colour alone, for one {chosen.blank[0].name}"


def float_model_warnings(map_before: float) -> Iterator[str]:
    """Of a float model that finds next to nothing, so that it cannot lose anything either."""
    if map_before < _LEAST_MAP:
        yield (
            f"the float model itself finds next to nothing in these images (mAP {map_before:.4f}), so what INT8 loses "
            "says nothing; check that it was exported with the --preprocess and --labels that it was trained with"
        )
