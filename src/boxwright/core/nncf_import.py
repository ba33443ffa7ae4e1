"""Importing NNCF without its reports of use, which it would send to its authors without asking."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
from collections.abc import Iterator
from typing import Any

from boxwright.core.errors import MissingDependencyError

# NNCF reports nothing where this says that a test runs it; it looks once, when it is imported.
_REPORTS_NOTHING = "NNCF_CI"


def import_nncf(needed_for: str) -> Any:
    """The package nncf.

    Args:
        needed_for: what the user asked for.

    Raises:
        MissingDependencyError: where it, or what it needs, is not installed.
    """
    before = os.environ.get(_REPORTS_NOTHING)
    os.environ[_REPORTS_NOTHING] = "1"
    try:
        with quiet_nncf():
            return importlib.import_module("nncf")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(error.name or "nncf", extra="int8", needed_for=needed_for) from error
    finally:
        if before is None:
            del os.environ[_REPORTS_NOTHING]
        else:
            os.environ[_REPORTS_NOTHING] = before


@contextlib.contextmanager
def quiet_nncf() -> Iterator[None]:
    """Keep NNCF from logging, and from drawing its bars on stdout, which belongs to the result."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
