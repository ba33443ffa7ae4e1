"""The names that the transformers package gives to weights of attentions, and ours."""

from __future__ import annotations

import re

import torch

from boxwright.models.common.checkpoint import StateDict

Rules = tuple[tuple[str, str], ...]
# Of a layer with attention; before the package's fifth version `o_proj` was `out_proj`, and there was no `mlp`.
LAYER_RULES: Rules = (
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"^(.*encoder\..*)\.final_layer_norm\.", r"\1.norm2."),
    (r"^(.*decoder\..*)\.final_layer_norm\.", r"\1.norm3."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.(mlp\.)?fc([12])\.", r".linear\2."),
)


def rename_keys(state: StateDict, rules: Rules) -> StateDict:
    """The same tensors, every rule (pattern, replacement) applied to every name in turn."""
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def fuse_projections(state: StateDict) -> StateDict:
    """The projections of query, key and value in one tensor; where one is missing the others stay as they are."""
    fused = dict(state)
    for key in state:
        parts = [key.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv"]
        if ".q_proj." in key and all(part in state for part in parts):
            fused[key.replace(".q_proj.", ".in_proj_")] = torch.cat([fused.pop(part) for part in parts])
    return fused
