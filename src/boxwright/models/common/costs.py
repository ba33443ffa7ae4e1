"""What each variant costs: its parameters and the work of one image, counted once for each state of the sources."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import boxwright.models
from boxwright.core.errors import OutputError
from boxwright.core.files import atomic_file, cache_dir
from boxwright.models.common.registry import families

# So that the published numbers can be compared.
_COCO_CLASSES = 80
_COUNTED_WITH = ("torch", "timm", "torchvision")


@dataclass(frozen=True, kw_only=True)
class VariantCost:
    """Of a variant with 80 classes at its usual input size.

    Attributes:
        num_parameters: of the module.
        gflops: of one image, a multiplication and an addition counted as two.
        is_exportable: whether a graph can hold all of it.
    """

    num_parameters: int
    gflops: float
    is_exportable: bool


def variant_costs() -> dict[str, VariantCost]:
    """The cost of every variant by its name.

    Counting all takes half a minute, so the result is kept in the cache; another version of a family's file or of what
    it is built from asks for another count.
    """
    kept = cache_dir() / "models" / f"{_fingerprint()}.json"
    try:
        return {name: VariantCost(**entry) for name, entry in json.loads(kept.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):  # not counted yet, or the file was damaged
        costs = {variant: _count(family, variant) for family in families() for variant in families()[family].VARIANTS}
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(kept) as temporary:
            temporary.write_text(json.dumps({name: asdict(cost) for name, cost in costs.items()}))
    except (OSError, OutputError):  # a cache that cannot be written is counted again the next time
        pass
    return costs


def _count(family: str, variant: str) -> VariantCost:
    size_hw = families()[family].VARIANTS[variant].size_hw
    # On the meta device nothing is computed or allocated.
    with torch.device("meta"):
        module = families()[family].build(variant, _COCO_CLASSES).eval().requires_grad_(False)
        images = torch.empty(1, 3, *size_hw)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(images)
    return VariantCost(
        num_parameters=sum(parameter.numel() for parameter in module.parameters()),
        gflops=counter.get_total_flops() / 1e9,
        is_exportable=module.is_exportable,
    )


def _fingerprint() -> str:
    digest = hashlib.sha256()
    for root in boxwright.models.__path__:
        for path in sorted(Path(root).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    for package in _COUNTED_WITH:
        digest.update(f"{package} {importlib.metadata.version(package)}\0".encode())
    return digest.hexdigest()[:16]
