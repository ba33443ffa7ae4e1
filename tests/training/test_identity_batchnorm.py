"""Statistics are replaced by real ones, and the function stays."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from boxwright.models import build_model
from boxwright.models.common.loading import read_weights
from boxwright.training.identity_batchnorm import has_identity_batchnorm, reestimate_batchnorm


def folded_model() -> nn.Module:
    """Two layers as a folded checkpoint leaves them: random slopes and offsets, mean 0, variance 1."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.SiLU(), nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4))
    for layer in module:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return module


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 12, 9, generator=generator) * 3 + 1 for _ in range(count)]


def test_function_is_kept_and_statistics_are_those_of_the_input() -> None:
    module = folded_model().eval()
    images = batches()
    probe = torch.randn(2, 3, 10, 10)
    before = module(probe)
    assert has_identity_batchnorm(module)
    assert reestimate_batchnorm(module, images) == 2
    assert not has_identity_batchnorm(module)
    torch.testing.assert_close(module(probe), before, rtol=1e-4, atol=1e-5)
    inputs = torch.cat([module[0](batch) for batch in images])
    torch.testing.assert_close(module[1].running_mean, inputs.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module[1].running_var, inputs.var(dim=(0, 2, 3), unbiased=False), rtol=1e-4, atol=1e-5)


def test_training_mode_then_computes_nearly_the_same_function() -> None:
    images = batches()
    module = folded_model()
    expected = module.eval()(images[0])
    broken = (module.train()(images[0]) - expected).abs().mean()
    module = folded_model()
    reestimate_batchnorm(module, images)
    mended = (module.train()(images[0]) - expected).abs().mean()
    assert mended < 0.1 * broken


def test_the_mode_is_left_as_it_was_and_hooks_are_gone() -> None:
    module = folded_model().train()
    reestimate_batchnorm(module, batches(1))
    assert module.training
    statistics = module[1].running_mean.clone()
    module.eval()(batches(1)[0])
    assert torch.equal(module[1].running_mean, statistics)


def test_no_images_change_nothing() -> None:
    module = folded_model()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert reestimate_batchnorm(module, []) == 0
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


def test_dead_channels_stay_finite() -> None:
    module = folded_model()
    with torch.no_grad():
        module[0].weight[2] = 0
        module[0].bias[2] = 0.5
    expected = module.eval()(batches()[0])
    reestimate_batchnorm(module, batches())
    torch.testing.assert_close(module(batches()[0]), expected, rtol=1e-4, atol=1e-5)


def test_a_trained_model_is_not_taken_for_one() -> None:
    module = build_model("yolox-pico", num_classes=2).train()
    for _ in range(2):
        module(torch.randn(2, 3, 64, 64) * 50 + 100)
    assert not has_identity_batchnorm(module)
    assert not has_identity_batchnorm(nn.Conv2d(3, 3, 1))


def test_the_public_file_is_recognised_and_kept(shared_dir: Path) -> None:
    weights = read_weights(shared_dir / "weights/yolox_nano_coco.pth", model="yolox-nano")
    module = build_model("yolox-nano", num_classes=80).eval()
    module.load_state_dict({**module.state_dict(), **weights.imported.state})
    assert has_identity_batchnorm(module)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(1, 3, 96, 128, generator=generator)
    with torch.no_grad():
        before = module(probe)
        changed = reestimate_batchnorm(module, [torch.randn(2, 3, 96, 96, generator=generator) for _ in range(2)])
        after = module(probe)
    assert changed == sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())
    for name, head in before.items():
        assert (after[name] - head).abs().max().item() == pytest.approx(0, abs=2e-3), name
