"""Starting from a checkpoint of a .cfg that has been changed since."""

from pathlib import Path

import pytest
import torch

from boxwright.models import build_model, load_model
from boxwright.models.common.loading import read_weights
from boxwright.models.common.saving import save_checkpoint
from boxwright.training.initial_weights import start_from_weights
from region_cfg import region_cfg

NAMES = ("a", "b", "c", "d", "e")


@pytest.mark.parametrize(("classes", "note"), [(3, "all layers"), (5, "3 classes; new for 5: network.layers.1.0")])
def test_a_changed_cfg_stays_what_it_is(classes: int, note: str, tmp_path: Path) -> None:
    cfg = tmp_path / "net.cfg"
    cfg.write_text(region_cfg(size_hw=(32, 64), stride=16, classes=3, head_lines=""))
    before = load_model(cfg, class_names=NAMES[:3])
    save_checkpoint(tmp_path / "m.pt", before.module.state_dict(), before.manifest())
    cfg.write_text(region_cfg(size_hw=(32, 64), stride=16, classes=classes, head_lines="nms_kind=diounms"))
    module = build_model(str(cfg), num_classes=classes)
    own = module.state_dict()["cfg"].clone()
    weights = read_weights(tmp_path / "m.pt", model=str(cfg))
    assert note in start_from_weights(module, weights, NAMES[:classes], "m.pt")[0]
    name = "network.layers.0.0.weight"
    assert torch.equal(module.state_dict()[name], before.module.state_dict()[name])
    assert torch.equal(module.state_dict()["cfg"], own)
    assert module.decode_spec((32, 64)).attributes().overlap == "diou"
