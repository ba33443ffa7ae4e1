"""Writing files so that nobody ever finds a half-written one: write beside, then rename."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from boxwright.core.errors import OutputError


def cache_dir() -> Path:
    """Where Boxwright keeps what can be made again: below XDG_CACHE_HOME, else ~/.cache."""
    # No path that is not absolute counts, says the XDG specification.
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "boxwright"


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` when the block ends well, else it is removed.

    The temporary name keeps the suffix of `path`, since some writers choose a format by it.

    Raises:
        OutputError: where the folder cannot be made, written to, or is full.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{uuid.uuid4().hex[:8]}{target.suffix}")
    with _as_output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise IsADirectoryError(21, "Is a directory")
        try:
            yield temporary
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it replaces `path` when the block ends well, else it is removed.

    Raises:
        OutputError: where the folder cannot be made, written to, or is full; where `path` is a file.
    """
    target = Path(path)
    suffix = uuid.uuid4().hex[:8]
    temporary, displaced = (
        target.with_name(f".{target.name}.{suffix}"),
        target.with_name(f".{target.name}.{suffix}.old"),
    )
    with _as_output_errors(target):
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(20, "Not a directory")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            yield temporary
            if target.exists():
                os.replace(target, displaced)
            os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(displaced, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_not_source(path: str | os.PathLike[str], source: str | os.PathLike[str]) -> None:
    """Raise `OutputError` where a result would replace the file that it is made from."""
    target = Path(path)
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise OutputError(
            str(target), expected="another file than the source", got="the source itself", fix="pass another --out"
        )


def check_writable(path: str | os.PathLike[str], *, leaves_folder: bool = True) -> None:
    """Raise `OutputError` now where `path` could not be written later, before the work is done.

    Args:
        path: of the result.
        leaves_folder: whether its folder is there afterwards; else what had to be made for the check goes again.
    """
    target = Path(path)
    absent = [folder for folder in target.parents if not folder.exists()]  # the deepest first
    with _as_output_errors(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            probe = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
            try:
                probe.touch()
            finally:
                probe.unlink(missing_ok=True)
        finally:
            if not leaves_folder:
                _remove_empty(absent)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders that are there and hold nothing."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def _as_output_errors(target: Path) -> Iterator[None]:
    """Turn the system's refusals to write into an `OutputError` that names the file."""
    try:
        yield
    except (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        raise OutputError(
            str(target),
            expected="a path that can be written",
            got=error.strerror or type(error).__name__,
            fix="choose another path or mend its permissions",
        ) from error
    except OSError as error:
        raise OutputError(
            str(target),
            expected="room and a working file system for the result",
            got=error.strerror or str(error),
            fix="free some space or choose another path",
        ) from error
