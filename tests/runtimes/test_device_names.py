"""Names of devices, as every engine with numbered GPUs reads them."""

from __future__ import annotations

import pytest

from boxwright.runtimes.device_names import parse_device


@pytest.mark.parametrize(
    ("device", "kind", "index", "text"),
    [("cpu", "cpu", 0, "cpu"), ("cuda", "cuda", 0, "cuda:0"), ("tensorrt:12", "tensorrt", 12, "tensorrt:12")],
)
def test_a_device_has_a_kind_and_a_number(device: str, kind: str, index: int, text: str) -> None:
    name = parse_device(device, ("cpu", "cuda", "tensorrt"))
    assert name is not None
    assert (name.kind, name.index, str(name)) == (kind, index, text)


@pytest.mark.parametrize("device", ["", "cpu:0", "cuda:", "cuda:-1", "cuda:x", "cuda:\u00b2", "cuda:1:1", "CUDA"])
def test_what_is_no_device(device: str) -> None:
    assert parse_device(device, ("cpu", "cuda")) is None
