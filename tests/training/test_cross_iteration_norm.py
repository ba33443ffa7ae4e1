"""Cross-iteration batch normalisation against the statistics that it approximates."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from boxwright.core.errors import InputError
from boxwright.models import Targets, build_model
from boxwright.training.cross_iteration_norm import (
    CrossIterationNorm2d,
    fold_cross_iteration_norm,
    forget_past_batches,
    insert_cross_iteration_norm,
    look_back,
)

EXAMPLE = torch.zeros(1, 3, 12, 10)


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1))


def norm_of(network: nn.Module) -> CrossIterationNorm2d:
    (norm,) = (layer for layer in network.modules() if isinstance(layer, CrossIterationNorm2d))
    return norm


def test_the_first_batch_is_normalised_as_usual() -> None:
    plain, crossed = small_network(), small_network()
    assert insert_cross_iteration_norm(crossed, 4, EXAMPLE) == ("1",)
    look_back(crossed, is_active=True)
    images = torch.randn(2, 3, 12, 10)
    expected, found = plain.train()(images), crossed.train()(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    expected.square().sum().backward()
    found.square().sum().backward()
    for (name, one), (_, two) in zip(plain.named_parameters(), crossed.named_parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, atol=1e-3, rtol=1e-3, msg=name)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(crossed.state_dict()[name], value, atol=1e-5, rtol=1e-5, msg=name)


def test_the_gradient_sees_that_earlier_statistics_follow_the_weights() -> None:
    """With the same batch again and again it is plain normalisation's, to which the scale of the weights is nothing.

    Were earlier statistics taken for constants, larger weights would pay, and grow for ever.
    """
    plain, crossed = small_network(), small_network()
    insert_cross_iteration_norm(crossed, 3, EXAMPLE)
    look_back(crossed, is_active=True)
    images, wanted = torch.randn(2, 3, 12, 10), torch.randn(2, 2, 10, 8)
    for network in (plain, crossed):
        for _ in range(3):
            network.zero_grad()
            (network.train()(images) - wanted).square().sum().backward()
    weight, expected = crossed[0].weight, plain[0].weight
    torch.testing.assert_close(weight.grad, expected.grad, atol=1e-3, rtol=1e-3)
    along = (weight.grad.flatten(1) * weight.detach().flatten(1)).sum(dim=1)
    assert (along.abs() < 1e-2 * weight.grad.flatten(1).norm(dim=1)).all()


def test_earlier_statistics_are_those_of_todays_weights_to_first_order() -> None:
    """The mean is linear in the weights, so its compensation is exact; squares are off by the change squared."""
    network = small_network()
    insert_cross_iteration_norm(network, 2, EXAMPLE)
    look_back(network, is_active=True)
    convolution, norm = network[0], norm_of(network)
    first, second = torch.randn(2, 3, 12, 10), torch.randn(2, 3, 12, 10) * 2 + 1
    network.train()(first)
    errors = []
    base = convolution.weight.detach().clone()
    direction = torch.randn_like(base)
    for size in (0.02, 0.01):
        with torch.no_grad():
            convolution.weight.copy_(base + size * direction)
            features = convolution(first)
        mean, squares = norm._past[0].today(convolution.weight.detach())
        torch.testing.assert_close(mean, features.mean(dim=(0, 2, 3)), atol=1e-5, rtol=1e-4)
        errors.append((squares - features.square().mean(dim=(0, 2, 3))).abs().max().item())
    assert errors[1] < 0.3 * errors[0] < 0.3 * 0.02  # halving the change quarters the error
    # And the output is normalised by the mean of both batches' statistics.
    with torch.no_grad():
        old, new = convolution(first), convolution(second)
        wanted_mean = (old.mean(dim=(0, 2, 3)) + new.mean(dim=(0, 2, 3))) / 2
        wanted_squares = (old.square().mean(dim=(0, 2, 3)) + new.square().mean(dim=(0, 2, 3))) / 2
        scale = (wanted_squares - wanted_mean.square() + norm.eps).rsqrt()
        wanted = (new - wanted_mean[:, None, None]) * scale[:, None, None]
    found = norm(convolution(second))
    torch.testing.assert_close(found.detach(), wanted, atol=1e-3, rtol=1e-3)
    assert len(norm._past) == 1  # a window of two remembers one


def test_it_is_a_plain_layer_in_evaluation_while_inactive_and_after_folding() -> None:
    network, plain = small_network(), small_network()
    insert_cross_iteration_norm(network, 3, EXAMPLE)
    images = torch.randn(2, 3, 12, 10)
    for _ in range(2):  # inactive
        torch.testing.assert_close(network.train()(images), plain.train()(images))
    assert not norm_of(network)._past
    look_back(network, is_active=True)
    for _ in range(3):
        network(torch.randn(2, 3, 12, 10) + 2)
    assert list(network.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(network.state_dict())
    torch.testing.assert_close(network.eval()(images), plain.eval()(images))
    fold_cross_iteration_norm(network)
    assert type(network[1]) is nn.BatchNorm2d
    torch.testing.assert_close(network(images), plain(images))


def test_an_epoch_begins_without_memory() -> None:
    network = small_network()
    insert_cross_iteration_norm(network, 3, EXAMPLE)
    look_back(network, is_active=True)
    network.train()(torch.randn(2, 3, 12, 10))
    assert len(norm_of(network)._past) == 1
    forget_past_batches(network)
    assert not norm_of(network)._past


def test_a_copy_has_a_convolution_and_tensors_of_its_own() -> None:
    network = small_network()
    insert_cross_iteration_norm(network, 3, EXAMPLE)
    copied = copy.deepcopy(network)
    assert norm_of(copied)._convolution is copied[0]
    assert copied.state_dict()["1.weight"].data_ptr() != network.state_dict()["1.weight"].data_ptr()
    assert copied[1].weight is norm_of(copied)._replaced.weight


def test_joint_statistics_vary_less_than_those_of_one_small_batch() -> None:
    """What the method is for: from batches of one image it gets statistics nearer to those of all."""
    torch.manual_seed(1)
    network = small_network()
    insert_cross_iteration_norm(network, 8, EXAMPLE)
    look_back(network, is_active=True)
    norm, images = norm_of(network), torch.randn(64, 3, 12, 10) + torch.randn(64, 1, 1, 1)
    true_mean = network[0](images).mean(dim=(0, 2, 3)).detach()
    alone, joint = [], []
    for image in images.split(1):
        network.train()(image)
        means = [past.mean for past in norm._past]
        alone.append((means[-1] - true_mean).square().mean().item())
        joint.append((torch.stack(means).mean(dim=0) - true_mean).square().mean().item())
    assert sum(joint[8:]) < 0.3 * sum(alone[8:])


@pytest.mark.parametrize("variant", ["yolox-pico", "retinanet-pico"])
def test_detectors_train_with_it(variant: str) -> None:
    torch.manual_seed(0)
    model = build_model(variant, num_classes=2)
    plain_output = copy.deepcopy(model).eval()(torch.ones(1, 3, 128, 128))["class_logits"]
    keys = list(model.state_dict())
    replaced = insert_cross_iteration_norm(model, 3, torch.zeros(1, 3, 128, 128))
    assert len(replaced) > 10 and list(model.state_dict()) == keys
    torch.testing.assert_close(model.eval()(torch.ones(1, 3, 128, 128))["class_logits"], plain_output)
    look_back(model.train(), is_active=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    images = torch.randn(2, 3, 128, 128)
    targets = Targets(
        boxes_xyxy=[torch.tensor([[8.0, 8, 40, 40]]), torch.zeros(0, 4)],
        class_ids=[torch.tensor([1]), torch.zeros(0, dtype=torch.int64)],
    )
    losses: list[Tensor] = []
    for _ in range(6):
        loss = model.training_loss(images, targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert torch.stack(losses).isfinite().all()
    assert losses[-1] < losses[0] and any(later < earlier for earlier, later in pairwise(losses))


def test_a_network_without_such_layers_is_refused() -> None:
    with pytest.raises(InputError, match="expected a network with batch normalisation"):
        insert_cross_iteration_norm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), 2, EXAMPLE)
