"""Parts of images: the same whether they are kept or read again."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from boxwright.training import image_parts
from boxwright.training.image_parts import ImageParts


@pytest.mark.parametrize(("is_grey", "most_kept"), [(False, 2), (True, 6)])  # three times as many grey ones
def test_only_so_much_is_kept(is_grey: bool, most_kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_parts, "_MOST_BYTES", 2 * 10 * 8 * 3)
    parts, expected = ImageParts(is_grey=is_grey), []
    for number in range(8):
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8))
        image = parts.read(path)
        assert image.shape == ((20, 30) if is_grey else (20, 30, 3))
        parts.append(path, (3, 4, 11, 14), image)
        expected.append(image[4:14, 3:11].copy())
    reads: list[Path] = []
    read_image = image_parts.read_image
    monkeypatch.setattr(image_parts, "read_image", lambda path: reads.append(path) or read_image(path))
    assert len(parts) == 8
    np.testing.assert_array_equal(list(parts), expected)
    assert [path.name for path in reads] == [f"{number}.png" for number in range(most_kept, 8)]
    np.testing.assert_array_equal(parts[-1], expected[-1])
    np.testing.assert_array_equal(parts[1:3], expected[1:3])
    with pytest.raises(IndexError):
        parts[8]
