"""The networks that the package ships are those it was released with, and know their images; others by their path."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn as nn

import onpath.evaluation.features as features
from onpath.data.images import Digits
from onpath.evaluation.features import PINNED, FeatureNetwork, load_features, weights_of


def test_the_digits_are_known_as_well_as_stated() -> None:
    test = Digits(split="test").examples(torch.arange(500))
    space = load_features("digits")
    agreement = (space.labels(space.of(test.x)) == test.cond["label"]).double().mean()
    assert agreement >= 0.985 and agreement == PINNED["digits"].accuracy


def test_features_are_standardised_over_the_training_images() -> None:
    found = load_features("digits").of(Digits().examples(torch.arange(1197)).x)
    assert found.shape == (1197, 32) and found.dtype == torch.float64
    torch.testing.assert_close(found.mean(0), torch.zeros(32, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(0), torch.ones(32, dtype=torch.float64), atol=2e-3, rtol=0)


def test_features_do_not_depend_on_what_else_is_in_the_batch() -> None:
    images = Digits(split="test").examples(torch.arange(20)).x
    space = load_features("digits")
    torch.testing.assert_close(space.of(images)[3:4], space.of(images[3:4]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PINNED)
def test_a_flipped_byte_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "weights.safetensors"
    monkeypatch.setattr(features, "weights_of", lambda _: changed)
    shutil.copy(weights_of(name), changed)
    assert load_features(name).checksum == PINNED[name].sha256
    content = bytearray(changed.read_bytes())
    content[-1000] ^= 1
    changed.write_bytes(content)
    with pytest.raises(ValueError, match=r"sha256.*install onpath again"):
        load_features(name)


@pytest.mark.parametrize("name", PINNED)
def test_weights_are_small_and_fit_their_network(name: str) -> None:
    pinned, space = PINNED[name], load_features(name)
    assert weights_of(name).stat().st_size <= 400_000
    images = torch.zeros(3, *pinned.shape)
    found = space.of(images)
    assert found.shape == (3, pinned.dim) and pinned.dim <= 64
    assert not any(p.requires_grad for p in space.network.parameters()) and not space.network.training


def test_a_network_of_your_own(tmp_path: Path) -> None:
    """A TorchScript module, as Inception networks are passed on; its checksum goes with the figures."""
    network = nn.Sequential(nn.AvgPool2d(2), nn.Flatten())
    path = tmp_path / "pool.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(network, torch.zeros(2, 3, 4, 4)).save(str(path))
    space = load_features(str(path))
    images = torch.rand(7, 3, 4, 4)
    torch.testing.assert_close(space.of(images), network(images).double())
    assert space.name == "pool.pt" and len(space.checksum) == 64 and space.num_classes == 0
    with pytest.raises(ValueError, match="no classifier"):
        space.labels(space.of(images))


def test_what_is_no_feature_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither a network of the package nor a file.*digits"):
        load_features("digit")
    wrong = tmp_path / "weights.pt"
    wrong.write_bytes(b"no module")
    with pytest.raises(ValueError, match="not a TorchScript module"):
        load_features(str(wrong))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 9, 16), (1, 4, 4)])
def test_a_network_for_images_of_any_size(shape: tuple[int, int, int]) -> None:
    network = FeatureNetwork(shape, num_classes=7, dim=12)
    found = network(torch.randn(5, *shape))
    assert found.shape == (5, 12) and network.logits(found).shape == (5, 7)
