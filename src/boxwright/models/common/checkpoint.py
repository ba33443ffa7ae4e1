"""Reading checkpoints without running what a pickle may carry, and putting their weights into a module."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from boxwright.core.errors import CheckpointError

EXPORTED_SUFFIXES = (".onnx", ".xml", ".engine", ".plan", ".bin")
_LISTED_KEYS = 10
StateDict = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class CheckpointFile:
    """What a checkpoint holds: tensors, numbers and strings in dicts and lists, nothing else.

    Attributes:
        path: of the file.
        content: as it was saved.
        sha256: of the file's bytes.
    """

    path: Path
    content: Mapping[str, Any]
    sha256: str


def read_checkpoint(path: str | Path) -> CheckpointFile:
    """Read a file that `torch.save` wrote, on the CPU and with `weights_only=True`.

    Raises:
        CheckpointError: where there is no such file, it is none of PyTorch's, it is cut off, or it needs code to load.
    """
    path = Path(path)
    if path.suffix.lower() in EXPORTED_SUFFIXES or path.is_dir():
        raise CheckpointError(
            str(path),
            expected="a training checkpoint (.pth, .pt)",
            got="a folder" if path.is_dir() else f"an exported model ({path.suffix})",
            fix="open exported models with boxwright.Detector",
        )
    try:
        digest = sha256_of(path)
        with warnings.catch_warnings():  # about pickles of other protocols, which end in an error anyway
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            str(path), expected="a training checkpoint", got="no such file", fix="check the path"
        ) from error
    except pickle.UnpicklingError as error:
        raise _unloadable(path, error) from error
    except Exception as error:  # the unpickler raises whatever the bytes of a foreign file lead it to
        raise _foreign(path, _first_line(error)) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            str(path),
            expected="a dict of tensors",
            got=type(content).__name__,
            fix="save module.state_dict() instead of the object",
        )
    return CheckpointFile(path=path, content=content, sha256=digest)


def _unloadable(path: Path, error: pickle.UnpicklingError) -> CheckpointError:
    """The pickle asks for a class or function, or the file is none of PyTorch's."""
    name = re.search(r"GLOBAL ([\w.]+)", str(error))
    if name is None:
        operand = re.search(r"Unsupported operand \d+", str(error))
        return _foreign(path, operand[0] if operand else _first_line(error))
    return CheckpointError(
        str(path),
        expected="tensors, numbers and strings alone",
        got=f"a pickle that needs {name[1]}, which loading would have to run",
        fix="where you trust its origin, save it again with torch.save({'model': model.state_dict()}, ...)",
    )


def _foreign(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        str(path),
        expected="a file that torch.save wrote",
        got=f"one that PyTorch cannot read ({reason})",
        fix="check the path, or copy it again",
    )


def find_state_dict(content: Mapping[str, Any], source: str) -> StateDict:
    """The weights in a checkpoint: under `model`, `state_dict`, `ema` or at its top.

    Raises:
        CheckpointError: where there are none.
    """
    for candidate in (content.get("model"), content.get("state_dict"), content.get("ema"), content):
        if isinstance(candidate, Mapping):
            tensors = {str(key): value for key, value in candidate.items() if isinstance(value, Tensor)}
            if tensors:
                return {key.removeprefix("module."): value for key, value in tensors.items()}
    raise CheckpointError(
        source,
        expected="tensors under 'model' or 'state_dict', or at the top",
        got="the keys " + ", ".join(map(repr, list(content)[:_LISTED_KEYS])),
        fix="save {'model': model.state_dict()}",
    )


def load_weights(module: nn.Module, state: StateDict, source: str) -> None:
    """Put weights into a module; every key must be there and fit.

    Args:
        module: to change.
        state: its state dict.
        source: named in errors.

    Raises:
        CheckpointError: where keys are missing, left over or of another shape; names up to ten of each.
    """
    match_state = getattr(module, "match_state", None)  # of models a part of whose state is optional
    if match_state is not None:
        match_state(state)
    own = module.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    surplus = [key for key in state if key not in own]
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    complaints = [
        f"{len(keys)} {what}: {_list(keys)}"
        for what, keys in (("missing", missing), ("surplus", surplus), ("of another shape", misshapen))
        if keys
    ]
    if complaints:
        raise CheckpointError(
            source,
            expected=f"the {len(own)} tensors of {getattr(module, 'variant', type(module).__name__)}",
            got="; ".join(complaints),
            fix="pass the --model that the checkpoint was trained as",
        )
    # Some public files leave out BatchNorm's step counters, which matter only where its momentum is None.
    module.load_state_dict({**own, **state}, strict=True)


def _list(keys: list[str]) -> str:
    more = f" and {len(keys) - _LISTED_KEYS} more" if len(keys) > _LISTED_KEYS else ""
    return ", ".join(keys[:_LISTED_KEYS]) + more


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
