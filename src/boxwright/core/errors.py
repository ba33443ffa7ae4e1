"""The errors a user can meet, each with the exit status that the command line gives for it.

A message is one line: what was expected, what came, and what to do about it.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_DEFECT = 1
EXIT_USER = 2
EXIT_ANSWER_IS_NO = 3


class BoxwrightError(Exception):
    """Base of all errors raised on purpose; `exit_status` is what the command line exits with."""

    exit_status = EXIT_DEFECT


class InputError(BoxwrightError, ValueError):
    """Something the user gave cannot be used, and the user can mend it.

    Args:
        what: the thing at fault, e.g. a path or an argument name.
        expected: what would have been right.
        got: what came instead.
        fix: what to do, as an imperative ("pass ...", "run ...").
    """

    exit_status = EXIT_USER

    def __init__(self, what: str, *, expected: str, got: str, fix: str) -> None:
        self.what, self.expected, self.got, self.fix = what, expected, got, fix
        message = f"{what}: expected {expected}, got {got}; {fix}"
        super().__init__(" ".join(message.split()))


class ImageError(InputError):
    """A picture (file or array) that cannot be read or used."""


class DatasetError(InputError):
    """A data set that cannot be recognised, read or used."""


class CheckpointError(InputError):
    """A training checkpoint that cannot be imported."""


class ModelFileError(InputError):
    """A model file (ONNX, OpenVINO IR, engine) that cannot be opened."""


class ManifestError(InputError):
    """A manifest that is missing, malformed or of a newer schema."""


class OutputError(InputError):
    """A result that cannot be written where it was asked for."""


class UnsupportedError(InputError):
    """A wish that this engine, model or machine cannot fulfil."""


class MissingDependencyError(InputError):
    """A package of an extra that is not installed; the message names the extra."""

    def __init__(self, package: str, *, extra: str, needed_for: str) -> None:
        super().__init__(
            needed_for,
            expected=f"the package {package}",
            got="an environment without it",
            fix=f"run: pip install 'boxwright[{extra}]'",
        )
        self.package, self.extra = package, extra


class AnswerIsNoError(BoxwrightError):
    """The work was done and the answer is no: a regression, a budget that cannot be met."""

    exit_status = EXIT_ANSWER_IS_NO


class VerificationError(AnswerIsNoError):
    """An exported artifact does not detect what its source detects."""
