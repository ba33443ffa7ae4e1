"""The cost of variants is counted once and kept, and a cache that is damaged or closed costs a count."""

from __future__ import annotations

from pathlib import Path

import pytest

from boxwright.models.common import costs
from boxwright.models.common.registry import families


@pytest.fixture
def one_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Only YOLOX is counted, and the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    only = {"yolox": families()["yolox"]}
    monkeypatch.setattr(costs, "families", lambda: only)
    return tmp_path / "boxwright" / "models"


def test_published_costs(one_family: Path) -> None:
    found = costs.variant_costs()
    # The paper's table 3: 0.91 M and 1.08 GFLOPs, 5.06 M and 6.45, which count activations too.
    assert found["yolox-nano"].num_parameters == pytest.approx(0.91e6, rel=0.01)
    assert found["yolox-nano"].gflops == pytest.approx(1.08, rel=0.05)
    assert found["yolox-tiny"].num_parameters == pytest.approx(5.06e6, rel=0.01)
    assert found["yolox-tiny"].gflops == pytest.approx(6.45, rel=0.05)


def test_counted_once_and_again_where_the_cache_is_damaged(one_family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = costs.variant_costs()
    (kept,) = one_family.iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(costs, "_count", lambda *_: pytest.fail("counted again"))
        assert costs.variant_costs() == first
    for damage in ("", "[1]", '{"yolox-nano": {"num_parameters": 1}}'):
        kept.write_text(damage)
        assert costs.variant_costs() == first
    assert costs.variant_costs() == first


def test_other_sources_ask_for_another_count(one_family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = costs._fingerprint()
    monkeypatch.setattr(costs, "_COUNTED_WITH", ("torch",))
    assert costs._fingerprint() != first


def test_a_cache_that_cannot_be_written_is_no_error(one_family: Path) -> None:
    one_family.parent.mkdir(parents=True)
    one_family.write_text("a file where the folder should be")
    assert "yolox-nano" in costs.variant_costs()
