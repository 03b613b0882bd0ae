"""The U-Net: its shapes, what it starts as, what it refuses, and that every part of it is of use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn as nn

from onpath.models.unet import ImageUNet
from onpath.types import ImageSpec

DIGITS = ImageSpec((1, 8, 8), num_classes=10, cond={"label": ()})


def awake(network: nn.Module) -> nn.Module:
    """With weights that are no longer those of the start, of which many are 0."""
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    return network.eval()


def inputs(spec: ImageSpec, size: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, *spec.shape, generator=generator), torch.rand(size, generator=generator)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 16), (4, 12, 20)])
@pytest.mark.parametrize("size", [{"levels": (1,)}, {"levels": (1, 2, 2), "blocks": 2}, {"attention": False}])
def test_the_output_has_the_shape_of_the_image_and_begins_at_zero(shape: Any, size: dict[str, Any]) -> None:
    spec = ImageSpec(shape)
    network = ImageUNet(spec, width=8, **size)
    x, t = inputs(spec)
    first = network(x, t, network.encode())
    assert first.shape == x.shape and not first.any()
    assert awake(network)(x, t, None).any()


@pytest.mark.parametrize("width", [8, 24, 40, 56, 104])
def test_every_width_that_is_accepted_runs(width: int) -> None:
    """The heads of the attention must divide the channels."""
    network = ImageUNet(DIGITS, width=width, levels=(1, 2))
    x, t = inputs(DIGITS, 1)
    assert network(x, t, network.encode(torch.zeros(1, dtype=torch.int64))).shape == x.shape


def test_time_and_label_matter_and_no_label_is_a_label_of_its_own() -> None:
    network = awake(ImageUNet(DIGITS, width=8))
    x, t = inputs(DIGITS)
    label, other = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
    with torch.no_grad():
        plain = network(x, t, network.encode(label))
        assert (plain - network(x, (t + 0.3) % 1.0, network.encode(label))).abs().amax((1, 2, 3)).min() > 1e-4
        assert (plain - network(x, t, network.encode(other))).abs().amax((1, 2, 3)).min() > 1e-4
        drop = torch.tensor([True, False, True])
        one, two = (network(x, t, network.encode(which, drop=drop)) for which in (label, other))
        assert torch.equal(one[drop], two[drop]) and not torch.equal(one[~drop], two[~drop])
        torch.testing.assert_close(one[~drop], plain[~drop])


def test_every_part_learns() -> None:
    network = awake(ImageUNet(DIGITS, width=8, levels=(1, 2), blocks=2)).train()
    x, t = inputs(DIGITS)
    memo = network.encode(torch.tensor([0, 1, 2]), drop=torch.tensor([True, False, False]))
    network(x, t, memo).square().sum().backward()
    assert not [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]


def test_dropout_acts_in_training_only() -> None:
    network = awake(ImageUNet(ImageSpec((1, 8, 8)), width=8, dropout=0.5))
    x, t = inputs(ImageSpec((1, 8, 8)))
    assert torch.equal(network(x, t, None), network(x, t, None))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network.train()
        assert not torch.equal(network(x, t, None), network(x, t, None))


def test_a_network_with_classes_needs_a_label() -> None:
    with pytest.raises(ValueError, match="knows 10 classes, but the request has no label"):
        ImageUNet(DIGITS, width=8).encode()
    assert ImageUNet(ImageSpec((1, 8, 8)), width=8).encode() is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 12}, "width is 12"),
        ({"width": 0}, "width is 0"),
        ({"levels": ()}, r"levels \(\)"),
        ({"levels": (0, 1)}, r"levels \(0, 1\)"),
        ({"blocks": 0}, "blocks 0"),
        ({"dropout": 1.0}, r"dropout 1\.0"),
        ({"levels": (1, 1, 1, 1, 1)}, "8 x 8, and 5 levels need sides divisible by 16"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageUNet(DIGITS, **settings)


def test_conditions_that_it_does_not_read_are_refused() -> None:
    with pytest.raises(ValueError, match="conditions text, and this network reads only"):
        ImageUNet(ImageSpec((1, 8, 8), cond={"text": (4,)}), width=8)
