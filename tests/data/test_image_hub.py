"""Datasets of pictures: the same pixels from every format, classes by name, splits of their own or by share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from onpath.data.image_hub import HubImages

NAMES = ["zebra", "ant", "moth"]  # in no order of the alphabet


def pictures(count: int = 50) -> list[Image.Image]:
    """Pictures of 5×5 whose red is their number."""
    return [Image.fromarray(np.full((5, 5, 3), (number, 7, 9), np.uint8)) for number in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty pictures as parquet, and as `save_to_disk` writes one split and several; classes by number and by name."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, disable_progress_bars
    from datasets import Image as Pictures

    disable_progress_bars()
    folder = tmp_path_factory.mktemp("datasets")
    columns = {"image": pictures(), "label": [n % 3 for n in range(50)], "kind": [NAMES[n % 3] for n in range(50)]}
    features = Features({"image": Pictures(), "label": ClassLabel(names=NAMES), "kind": Value("string")})
    whole = Dataset.from_dict(columns, features=features)
    whole.to_parquet(folder / "pictures.parquet")
    whole.save_to_disk(folder / "one")
    DatasetDict(train=whole.select(range(30)), held=whole.select(range(30, 50))).save_to_disk(folder / "several")
    plain = Dataset.from_dict({"image": [{"bytes": b"torn", "path": None}], "label": [0]})
    plain.to_parquet(folder / "torn.parquet")
    Dataset.from_dict({"image": ["a picture"], "label": [-1]}).to_parquet(folder / "words.parquet")
    return folder


def source(folder: Path, name: str = "pictures.parquet", **fields: Any) -> HubImages:
    return HubImages(str(folder / name), **{"size": 5, "cache": str(folder / "cache"), **fields})


def numbers(made: HubImages) -> list[int]:
    batch = made.examples(torch.arange(made.num_examples))
    return sorted(made.pixels(batch.x)[:, 0, 0, 0].tolist())


@pytest.mark.parametrize("name", ["pictures.parquet", "one"])
def test_every_format_gives_the_pixels_and_classes(folder: Path, name: str) -> None:
    made = source(folder, name, validation_share=0.0, test_share=0.0)
    batch = made.examples(torch.arange(50))
    red = made.pixels(batch.x)[:, 2, 2, 0].long()
    assert made.classes == tuple(NAMES) and red.sort().values.tolist() == list(range(50))
    assert torch.equal(batch.cond["label"], red % 3) and made.spec().shape == (3, 5, 5)


def test_classes_by_name_and_in_an_order_of_ones_own(folder: Path) -> None:
    named = source(folder, label="kind")
    assert named.classes == tuple(sorted(NAMES))
    own = source(folder, label="kind", class_names=("moth", "zebra", "ant"))
    batch = own.examples(torch.arange(20))
    red = own.pixels(batch.x)[:, 0, 0, 0].long()
    assert torch.equal(batch.cond["label"], torch.tensor([1, 2, 0])[red % 3])
    assert source(folder, label="").spec().cond == {}
    found = named.settled()
    assert dataclasses.replace(named, name="gone", **found).spec() == named.spec()


def test_splits_by_name_and_by_share(folder: Path) -> None:
    shared = [numbers(source(folder, split=split)) for split in ("train", "validation", "test")]
    assert sorted(shared[0] + shared[1] + shared[2]) == list(range(50)) and all(shared)
    named = {
        split: source(folder, "several", validation_split="held", split=split)
        for split in ("train", "validation", "test")
    }
    assert numbers(named["validation"]) == list(range(30, 50))
    assert sorted(numbers(named["train"]) + numbers(named["test"])) == list(range(30))


def test_a_stream_is_laid_down_up_to_its_limit_and_once(folder: Path, tmp_path: Path) -> None:
    fields = {"cache": str(tmp_path), "validation_share": 0.0, "test_share": 0.0, "max_examples": 12}
    for more in ({}, {"seed": 3}, {"flip": True}):
        assert numbers(source(folder, streaming=True, **fields, **more)) == list(range(12))
    assert len(list(tmp_path.glob("*/pixels.bin"))) == 1


def refusal(made: HubImages) -> str:
    with pytest.raises(ValueError) as caught:
        made.examples(torch.arange(2))
    return str(caught.value)


def test_mistakes(folder: Path) -> None:
    assert "there is no column 'img', but image, label, kind" in refusal(source(folder, image="img"))
    assert 'data.label=""' in refusal(source(folder, label="class"))
    assert "column 'kind' holds str; a picture or the bytes" in refusal(source(folder, image="kind"))
    assert "1 of 1 pictures cannot be read: row 0 (cannot identify image file)" in refusal(
        source(folder, "torn.parquet")
    )
    assert "row 0: the class is -1" in refusal(source(folder, "words.parquet"))
    assert "holds the class 'ant', and the classes are zebra, moth" in refusal(
        source(folder, class_names=("zebra", "moth"))
    )
    assert "cannot be loaded" in refusal(source(folder, "gone.parquet"))
    with pytest.raises(ValueError, match="max_examples is 0 and streaming is true"):
        HubImages("a", 8, streaming=True)
    with pytest.raises(ValueError, match="class_names is set, but label names no column"):
        HubImages("a", 8, label="", class_names=("a",))
