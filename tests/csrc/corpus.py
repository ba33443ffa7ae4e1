"""Packs the files of a fuzzer's corpus into one file, and unpacks them.

    python tests/csrc/corpus.py pack DIRECTORY FILE
    python tests/csrc/corpus.py unpack FILE DIRECTORY

Each record is its length, four bytes, the lowest first, and its bytes.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path


def pack(directory: Path, file: Path) -> int:
    """Write all files of a folder, by name; returns how many."""
    records = [path.read_bytes() for path in sorted(directory.iterdir())]
    file.write_bytes(b"".join(struct.pack("<I", len(record)) + record for record in records))
    return len(records)


def unpack(file: Path, directory: Path) -> int:
    """Write each record to a file of its own; returns how many."""
    data, position, count = file.read_bytes(), 0, 0
    directory.mkdir(parents=True, exist_ok=True)
    while position < len(data):
        (length,) = struct.unpack_from("<I", data, position)
        position += 4
        (directory / f"{count:05}").write_bytes(data[position : position + length])
        position, count = position + length, count + 1
    return count


if __name__ == "__main__":
    action, source, target = sys.argv[1:]
    print({"pack": pack, "unpack": unpack}[action](Path(source), Path(target)), "records")
