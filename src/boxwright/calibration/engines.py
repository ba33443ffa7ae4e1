"""The engines that files are made for: which are here, and what they can run a float model in."""

from __future__ import annotations

from collections.abc import Sequence

from boxwright.core.errors import InputError, UnsupportedError
from boxwright.core.manifest import Precision
from boxwright.core.placement import rules_for

# What a float model is tried in beside FP32; what the machine lacks is passed over.
_OTHER_PRECISIONS: dict[str, tuple[Precision, ...]] = {"openvino": ("bf16", "fp16"), "tensorrt": ("fp16",)}


def check_engines(names: Sequence[str]) -> None:
    """Raise where a budget cannot be held to on one of these engines here.

    Raises:
        UnsupportedError: where there are no rules for one, or it is not installed.
        InputError: where there is none, or one is there twice.
    """
    from boxwright.runtimes.backend import backend_module, backend_names

    if not names or len(set(names)) < len(names):
        raise InputError("--engines", expected="names of engines, each once", got=repr(",".join(names)), fix="correct")
    for name in names:
        rules_for(name)
        missing = "no backend of that name" if name not in backend_names() else backend_module(name).available()
        if missing is not None:
            raise UnsupportedError(
                f"--engines {name}",
                expected="an engine that is installed here, since a budget is held to by measuring",
                got=missing,
                fix=f"install it, calibrate where it is, or leave --max-drop out and pass --engine {name}",
            )


def other_precisions(engine: str) -> tuple[Precision, ...]:
    """What an engine may run a float model in, FP32 apart."""
    return _OTHER_PRECISIONS.get(engine, ())
