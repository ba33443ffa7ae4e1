"""Writing checkpoints: tensors, numbers and strings alone, so that reading one runs no code."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from boxwright.core.errors import InputError
from boxwright.core.files import atomic_file
from boxwright.core.manifest import Manifest
from boxwright.models.common.checkpoint import StateDict
from boxwright.models.common.loading import OWN_KEY, OWN_SCHEMA

_RESERVED = (OWN_KEY, "model", "manifest")


def save_checkpoint(
    path: str | Path, state: StateDict, manifest: Manifest, extras: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint whole or not at all.

    Args:
        path: to write.
        state: the weights that are to be used.
        manifest: of the raw module.
        extras: more entries, such as the optimizer's state: dicts and lists of tensors, numbers and strings.

    Raises:
        OutputError: where it cannot be written.
    """
    extras = dict(extras or {})
    taken = sorted(set(extras) & set(_RESERVED))
    if taken:
        raise InputError("extras", expected="keys other than " + ", ".join(_RESERVED), got=taken[0], fix="rename it")
    content = {
        OWN_KEY: {"schema": OWN_SCHEMA, "family": manifest.family, "variant": manifest.variant},
        "model": {name: tensor.detach().cpu() for name, tensor in state.items()},
        "manifest": manifest.to_json(),
        **extras,
    }
    # By way of memory: on a full disk torch.save itself raises an error that says nothing of disks.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_file(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
