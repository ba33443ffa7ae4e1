"""Reading image files: what they become, and what is refused."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from boxwright.core.errors import ImageError
from boxwright.core.image_format import displayed_size_hw, find_damage
from boxwright.core.images import decode_image, quiet_opencv, read_image, read_image_size_hw

HEIGHT, WIDTH = 47, 83


def picture(channels: int = 3) -> np.ndarray:
    """(47, 83, channels) uint8 with every channel different, smooth enough for JPEG."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    planes = [rows * 4, columns * 3, (rows + columns) * 255 // (HEIGHT + WIDTH), 255 - columns * 2]
    return np.stack(planes[:channels], axis=-1).astype(np.uint8)


def encode(image: np.ndarray, suffix: str, *options: int) -> bytes:
    is_encoded, data = cv2.imencode(suffix, image, list(options))
    assert is_encoded
    return data.tobytes()


def with_exif_orientation(jpeg: bytes, orientation: int, byte_order: str) -> bytes:
    """A JPEG file with an EXIF block after its first marker."""
    mark = b"II" if byte_order == "<" else b"MM"
    tiff = mark + struct.pack(byte_order + "HI", 42, 8) + struct.pack(byte_order + "H", 2)
    tiff += struct.pack(byte_order + "HHIHH", 0x010E, 3, 1, 77, 0)  # another tag first
    tiff += struct.pack(byte_order + "HHIHH", 0x0112, 3, 1, orientation, 0) + struct.pack(byte_order + "I", 0)
    content = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


def with_thumbnail(jpeg: bytes) -> bytes:
    """A JPEG file that holds a whole other one in a segment of its own."""
    content = b"Exif\0\0" + encode(picture()[:8, :8], ".jpg")
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        pytest.param(picture(), picture(), id="bgr8"),
        pytest.param(picture(1), np.repeat(picture(1), 3, axis=2), id="grey8"),
        pytest.param(picture(4), picture(), id="bgra8"),
        pytest.param(picture().astype(np.uint16) * 256 + 255, picture(), id="bgr16"),
        pytest.param(picture(1).astype(np.uint16) * 256, np.repeat(picture(1), 3, axis=2), id="grey16"),
        pytest.param(picture(4).astype(np.uint16) * 256 + 7, picture(), id="bgra16"),
    ],
)
def test_png_of_any_kind_becomes_bgr_uint8(tmp_path: Path, array: np.ndarray, expected: np.ndarray) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encode(array, ".png"))
    image = read_image(path)
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff", ".ppm"])
def test_formats_and_unusual_names(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"ein Bild mit Ümlauten {suffix}"
    path.write_bytes(encode(picture(), suffix))
    assert read_image(str(path)).shape == (HEIGHT, WIDTH, 3)
    assert read_image_size_hw(path) == (HEIGHT, WIDTH)
    assert int(np.abs(read_image(path).astype(int) - picture()).max()) <= (0 if suffix not in (".jpg", ".webp") else 40)


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_exif_orientation_is_applied_and_the_size_agrees(tmp_path: Path, orientation: int, byte_order: str) -> None:
    path = tmp_path / "turned.jpg"
    upright = decode_image(encode(picture(), ".jpg"))
    path.write_bytes(with_exif_orientation(encode(picture(), ".jpg"), orientation, byte_order))
    # EXIF 2.3, section 4.6.4: what row 0 and column 0 of the stored image are as displayed.
    expected = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[:, ::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[::-1],
    }[orientation]
    np.testing.assert_array_equal(read_image(path), expected)
    assert read_image_size_hw(path) == expected.shape[:2]
    assert displayed_size_hw(path.read_bytes()) == expected.shape[:2]


@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("wrap", [lambda data: data, with_thumbnail], ids=["plain", "thumbnail"])
def test_a_jpeg_cut_off_anywhere_is_refused(wrap, progressive: int) -> None:
    data = wrap(encode(picture(), ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, progressive, cv2.IMWRITE_JPEG_RST_INTERVAL, 2))
    assert decode_image(data).shape == (HEIGHT, WIDTH, 3)
    assert decode_image(data + b"what a camera appends").shape == (HEIGHT, WIDTH, 3)
    for length in [*range(2, len(data), 37), len(data) - 2, len(data) - 1]:
        for tail in (b"", bytes(len(data) - length)):  # cut off, or never written but allotted
            with pytest.raises(ImageError, match="cut off"):
                decode_image(data[:length] + tail)


def test_a_png_cut_off_or_damaged_is_refused() -> None:
    data = encode(picture(), ".png")
    assert find_damage(data) is None
    for length in range(8, len(data) - 1, 61):
        with pytest.raises(ImageError, match="cut off"):
            decode_image(data[:length])
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 0x10
    with pytest.raises(ImageError, match="'IDAT' is damaged"):
        decode_image(bytes(damaged))


@pytest.mark.parametrize("suffix", [".bmp", ".webp", ".tiff", ".ppm"])
def test_other_formats_cut_off_are_refused_without_noise(suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = encode(picture(), suffix)
    with pytest.raises(ImageError, match="do not decode"):
        decode_image(data[: len(data) // 2], "half")
    assert capfd.readouterr().err == ""


def test_samples_that_are_no_grey_levels_are_named(tmp_path: Path) -> None:
    path = tmp_path / "heat.tiff"
    cv2.imwrite(str(path), np.full((20, 30, 3), 0.5, np.float32))
    with pytest.raises(ImageError, match=r"heat.tiff: expected .* 8 or 16 bits, got .* samples of float32; scale it"):
        read_image(path)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int) -> bytes:
    """A PNG file with valid chunks that claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        pytest.param(b"", "an empty file", id="empty"),
        pytest.param(b"this is no image" * 9, "do not decode", id="text"),
        pytest.param(b"\xff\xd8", "cut off", id="jpeg signature alone"),
        pytest.param(b"\x89PNG\r\n\x1a\n", "cut off", id="png signature alone"),
        pytest.param(png_header(60_000, 60_000), "OpenCV refuses", id="3.6 gigapixels"),
        pytest.param(png_header(7, 5), "do not decode", id="png without pixels"),
    ],
)
def test_a_file_that_is_no_image_is_refused_in_one_line(tmp_path: Path, content: bytes, got: str) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=got) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and "expected" in message and caught.value.fix


@pytest.mark.parametrize("reader", [read_image, read_image_size_hw])
def test_a_path_that_cannot_be_opened(tmp_path: Path, reader) -> None:
    with pytest.raises(ImageError, match="No such file"):
        reader(tmp_path / "absent.jpg")
    with pytest.raises(ImageError, match="directory"):
        reader(tmp_path)


def test_a_png_with_exif_is_left_to_the_decoder(tmp_path: Path) -> None:
    path = tmp_path / "turned.png"
    tiff = b"II" + struct.pack("<HI", 42, 8) + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    data = encode(picture(), ".png")
    path.write_bytes(data[:33] + png_chunk(b"eXIf", tiff) + data[33:])  # after the header chunk
    assert displayed_size_hw(path.read_bytes()) is None
    assert read_image_size_hw(path) == read_image(path).shape[:2]


def test_size_of_files_without_a_quick_header(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.write_bytes(b"")
    with pytest.raises(ImageError, match="an empty file"):
        read_image_size_hw(path)
    assert displayed_size_hw(encode(picture(), ".webp")) is None
    assert displayed_size_hw(encode(picture(), ".jpg")[:20]) is None


@pytest.mark.parametrize("size_hw", [(1, 1), (50, 20_000), (20_000, 50)])
def test_extreme_sizes_are_read(tmp_path: Path, size_hw: tuple[int, int]) -> None:
    path = tmp_path / "extreme.png"
    path.write_bytes(encode(np.full((*size_hw, 3), 9, np.uint8), ".png"))
    assert read_image(path).shape == (*size_hw, 3)
    assert read_image_size_hw(path) == size_hw


def test_quiet_blocks_nest_and_restore_the_level() -> None:
    logging = getattr(cv2.utils, "logging", cv2)
    level = logging.getLogLevel()
    with quiet_opencv():
        with quiet_opencv():
            pass
        assert logging.getLogLevel() == 0
    assert logging.getLogLevel() == level > 0
