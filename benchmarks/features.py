"""Trains a network in whose features images are compared, as those that the package ships were trained.

    python -m benchmarks.features digits [--out FILE] [--threads 1]
    python -m benchmarks.features fashion_mnist|cifar10 --data FOLDER

Trained on the training split alone, by label, with little augmentation (shifts, for clothes and objects mirroring
too), with AdamW on one cycle of the learning rate, no label smoothing. Prints a JSON line {benchmark, case, metric,
value, unit, baseline, ratio} for the accuracy on the test split, its seconds, and the sha256 that belongs into
``onpath.evaluation.features.PINNED``. Another machine or torch gives other last bits, so another checksum: that is why
the weights are shipped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from onpath import rng
from onpath.data.image_sets import Cifar10, FashionMNIST
from onpath.data.images import Digits
from onpath.data.source import ImageSource
from onpath.evaluation.features import FeatureNetwork

BATCH_SIZE = 128


@dataclass(frozen=True)
class Plan:
    """How a network is trained. dim: of its features. shift: greatest shift in pixels. mirror: left and right."""

    source: Callable[[Path | None], ImageSource]
    dim: int
    epochs: int
    shift: int
    mirror: bool = False
    learning_rate: float = 4e-3


def _given(path: Path | None) -> str:
    if path is None:
        raise SystemExit("--data: the folder of the official files is needed")
    return str(path)


PLANS = {
    "digits": Plan(lambda _: Digits(), dim=32, epochs=60, shift=1),
    "fashion_mnist": Plan(lambda path: FashionMNIST(_given(path)), dim=48, epochs=5, shift=1, mirror=True),
    "cifar10": Plan(lambda path: Cifar10(_given(path), flip=False), dim=48, epochs=8, shift=3, mirror=True),
}


def everything(source: ImageSource) -> tuple[Tensor, Tensor]:
    """All images of a split and their labels."""
    batch = source.examples(torch.arange(source.num_examples or 0))
    return batch.x, batch.cond["label"]


def augmented(images: Tensor, plan: Plan, key: rng.Key, ids: Tensor) -> Tensor:
    """Each image shifted by up to `shift` pixels either way, background where nothing was, and half mirrored."""
    side, pad = images.shape[-1], plan.shift
    padded = F.pad(images, (pad,) * 4, value=-1.0)
    offset = rng.integers(key.fold("shift"), ids, (2,), 2 * pad + 1)
    rows = offset[:, :1] + torch.arange(images.shape[-2])
    columns = offset[:, 1:] + torch.arange(side)
    if plan.mirror:
        turned = rng.integers(key.fold("mirror"), ids, (), 2)[:, None] == 1
        columns = torch.where(turned, columns.flip(1), columns)
    which = torch.arange(len(images))[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def train(source: ImageSource, plan: Plan, seed: int = 0) -> FeatureNetwork:
    """A network trained on the training split of `source`."""
    images, labels = everything(source)
    torch.manual_seed(seed)
    spec = source.spec()
    network = FeatureNetwork(spec.shape, spec.num_classes, plan.dim).to(memory_format=torch.channels_last)
    steps_of_epoch = len(images) // BATCH_SIZE
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, weight_decay=0.02)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.learning_rate, plan.epochs * steps_of_epoch)
    for epoch in range(plan.epochs):
        key = rng.Key(seed, "features").at(epoch)
        order = rng.bits(key.fold("order"), torch.arange(len(images))).argsort()
        for part in order[: steps_of_epoch * BATCH_SIZE].view(steps_of_epoch, BATCH_SIZE):
            seen = augmented(images[part], plan, key, part).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(network.logits(network(seen)), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
    return network.to(memory_format=torch.contiguous_format).eval()


def settle(network: FeatureNetwork, images: Tensor) -> None:
    """Takes mean and variance of the features over `images` as they are, in place of a running average."""
    with torch.no_grad():
        features = torch.cat([network.project(network.trunk(part)) for part in images.split(512)]).double()
    network.norm.running_mean = features.mean(0).float()
    network.norm.running_var = features.var(0, unbiased=False).float()


def accuracy(network: FeatureNetwork, images: Tensor, labels: Tensor) -> float:
    """Share of images whose label the network gives."""
    with torch.no_grad():
        found = torch.cat([network.logits(network(part)).argmax(-1) for part in images.split(512)])
    return float((found == labels).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PLANS)
    parser.add_argument("--data", type=Path, help="folder of the images, for all but the digits")
    parser.add_argument("--out", type=Path, help="where the weights go; nowhere without it")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    plan, begun = PLANS[args.name], time.perf_counter()
    source = plan.source(args.data)
    network = train(source, plan)
    seconds = time.perf_counter() - begun
    settle(network, everything(source)[0])
    score = accuracy(network, *everything(source.at_split("test")))
    row = {"benchmark": "features", "case": args.name, "metric": "accuracy", "value": score, "unit": "share"}
    told = {"seconds": round(seconds, 1), "parameters": sum(p.numel() for p in network.parameters())}
    if args.out is not None:
        weights = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
        save_file(weights, args.out)
        told |= {"sha256": hashlib.sha256(args.out.read_bytes()).hexdigest(), "bytes": args.out.stat().st_size}
    print(json.dumps({**row, "baseline": None, "ratio": None, **told}), flush=True)


if __name__ == "__main__":
    main()
