"""What an image file says about itself: whether it is whole, and how large it is, without decoding it.

OpenCV fills the missing part of a JPEG file with grey where it can, so a file that was cut off is told here.
"""

from __future__ import annotations

import mmap
import re
import struct
import zlib
from typing import NamedTuple

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8"
EXIF_ORIENTATION_TAG = 0x0112
# A 0xFF followed by 0x00 is a byte of the picture, by 0xFF a fill byte; 0x01 and 0xD0 to 0xD7 (restart) stand alone.
_JPEG_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
_JPEG_END = 0xD9
_JPEG_START_OF_SCAN = 0xDA
_JPEG_APP1 = 0xE1
_JPEG_NOT_FRAMES = (0xC4, 0xC8, 0xCC)  # tables and an extension, in the range of the start-of-frame markers

Bytes = bytes | mmap.mmap


class _JpegFacts(NamedTuple):
    size_hw: tuple[int, int] | None  # as stored
    orientation: int
    has_end: bool


def find_damage(data: Bytes) -> str | None:
    """What is wrong with the structure of a JPEG or PNG file, or None.

    A JPEG file is whole where its chain of segments reaches the end-of-image marker; an end marker inside a segment
    (a thumbnail's) does not count, and bytes after the end are allowed. A PNG file is whole where its chunks, each
    with the right CRC, reach IEND. Other formats are left to the decoder, which refuses incomplete files.

    Args:
        data: the whole file.

    Source: ITU-T T.81, annex B; W3C PNG specification (third edition), section 5.
    """
    if data[:2] == JPEG_SIGNATURE:
        return None if _walk_jpeg(data, until_frame=False).has_end else "a JPEG file that is cut off before its end"
    if data[:8] == PNG_SIGNATURE:
        return _find_png_damage(data)
    return None


def displayed_size_hw(data: Bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG or PNG image as it is displayed, or None where only a decoder can tell.

    The EXIF orientation is followed, as `boxwright.core.images.read_image` does.

    Args:
        data: the file, or an `mmap` of it, of which only the header is read (of a PNG, it is searched for EXIF).
    """
    if data[:2] == JPEG_SIGNATURE:
        facts = _walk_jpeg(data, until_frame=True)
        if facts.size_hw is None or 0 in facts.size_hw:  # a height of 0 is given later in the file (DNL)
            return None
        height, width = facts.size_hw
        return (width, height) if facts.orientation >= 5 else (height, width)
    if data[:8] == PNG_SIGNATURE and len(data) >= 24:
        if data.find(b"eXIf", 24) >= 0:
            return None
        width, height = struct.unpack(">II", data[16:24])
        return height, width
    return None


def _walk_jpeg(data: Bytes, *, until_frame: bool) -> _JpegFacts:
    """Follow the segments of a JPEG file to its end, or until its size is known."""
    position, size_hw, orientation = 2, None, 1
    while (match := _JPEG_MARKER.search(data, position)) is not None:
        start = match.end()
        marker = data[start - 1]
        if marker == _JPEG_END:
            return _JpegFacts(size_hw, orientation, True)
        if start + 2 > len(data):
            break
        length = struct.unpack(">H", data[start : start + 2])[0]
        if marker == _JPEG_APP1:
            orientation = _exif_orientation(data[start + 2 : start + length]) or orientation
        elif 0xC0 <= marker <= 0xCF and marker not in _JPEG_NOT_FRAMES and start + 7 <= len(data):
            size_hw = struct.unpack(">HH", data[start + 3 : start + 7])
        if until_frame and (size_hw is not None or marker == _JPEG_START_OF_SCAN):
            break
        position = start + max(length, 2)
    return _JpegFacts(size_hw, orientation, False)


def _exif_orientation(segment: bytes) -> int | None:
    """The orientation, 1 to 8, in an EXIF segment's first directory."""
    if segment[:6] != b"Exif\x00\x00" or segment[6:8] not in (b"II", b"MM"):
        return None
    tiff, order = segment[6:], "<" if segment[6:8] == b"II" else ">"
    try:
        directory = struct.unpack(order + "I", tiff[4:8])[0]
        (count,) = struct.unpack(order + "H", tiff[directory : directory + 2])
        for entry in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind = struct.unpack(order + "HH", tiff[entry : entry + 4])
            if tag == EXIF_ORIENTATION_TAG and kind == 3:
                value: int = struct.unpack(order + "H", tiff[entry + 8 : entry + 10])[0]
                return value if 1 <= value <= 8 else None
    except struct.error:  # offsets that point outside: OpenCV ignores such a block, too
        return None
    return None


def _find_png_damage(data: Bytes) -> str | None:
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        end = position + 12 + length
        if end > len(data):
            break
        if struct.unpack(">I", data[end - 4 : end])[0] != zlib.crc32(data[position + 4 : end - 4]):
            return f"a PNG file whose chunk {kind.decode('latin-1')!r} is damaged (wrong CRC)"
        if kind == b"IEND":
            return None
        position = end
    return "a PNG file that is cut off before its end"
