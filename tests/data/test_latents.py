"""Cached latents: what was saved comes back scaled, with its conditions; what is torn or does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from onpath.data.latents import Latents, save_latents

SIZE = 40
GENERATOR = torch.Generator().manual_seed(0)
LATENTS = torch.randn(SIZE, 4, 3, 5, generator=GENERATOR) * 5 + 1
LABEL = torch.randint(0, 7, (SIZE,), generator=GENERATOR)
TEXT = torch.randn(SIZE, 6, 8, generator=GENERATOR)
SPLITS = ("train", "validation", "test")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "latents.safetensors"
    save_latents(path, LATENTS.half(), label=LABEL, text=TEXT)
    return path


def rows_of(made: Latents, latents: torch.Tensor) -> list[int]:
    """Which of the latents stand in a split; each must be there exactly."""
    x = made.examples(torch.arange(made.num_examples)).x
    return [int((latents == row).flatten(1).all(1).nonzero()) for row in x]


def test_splits_are_apart_and_cover_all(file: Path) -> None:
    found = [rows_of(Latents(str(file), split=split), LATENTS.half().float()) for split in SPLITS]
    assert sorted(found[0] + found[1] + found[2]) == list(range(SIZE)) and all(found)
    assert found[1] == sorted(found[1]) and found[0] != sorted(found[0])


def test_conditions_go_with_their_latents(file: Path) -> None:
    made = Latents(str(file))
    batch = made.examples(torch.arange(made.num_examples, 2 * made.num_examples))
    rows = [int((LATENTS.half().float() == row).flatten(1).all(1).nonzero()) for row in batch.x]
    assert torch.equal(batch.cond["label"], LABEL[rows]) and torch.equal(batch.cond["text"], TEXT[rows])
    spec = made.spec()
    assert spec.shape == (4, 3, 5) and spec.cond == {"label": (), "text": (6, 8)}
    assert spec.num_classes == int(LABEL.max()) + 1 and Latents(str(file), num_classes=9).spec().num_classes == 9


def test_scale_and_shift_are_those_of_a_vae(file: Path) -> None:
    raw, scaled = Latents(str(file)), Latents(str(file), scale=0.18215, shift=0.5)
    ids = torch.arange(12)
    torch.testing.assert_close(scaled.examples(ids).x, (raw.examples(ids).x - 0.5) * 0.18215)
    assert "standard deviation of 5" in raw.remarks[0] and Latents(str(file), scale=0.2).remarks == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_float_and_both_formats(tmp_path: Path, dtype: torch.dtype) -> None:
    save_latents(tmp_path / "a.safetensors", LATENTS.to(dtype), label=LABEL.int())
    one = Latents(str(tmp_path / "a.safetensors")).examples(torch.arange(9))
    assert one.x.dtype == torch.float32 and one.cond["label"].dtype == torch.int64
    if dtype != torch.bfloat16:
        np.savez(tmp_path / "a.npz", latents=LATENTS.to(dtype).numpy(), label=LABEL.numpy())
        other = Latents(str(tmp_path / "a.npz")).examples(torch.arange(9))
        assert torch.equal(one.x, other.x) and torch.equal(one.cond["label"], other.cond["label"])


def refusal(made: Any, file: Any = None) -> str:
    with pytest.raises(ValueError) as caught:
        Latents(str(made)).examples(torch.arange(2)) if file is None else made(file)
    return str(caught.value)


def test_latents_are_nothing_to_look_at(file: Path) -> None:
    made = Latents(str(file), scale=0.2)
    assert "x / scale + shift (scale 0.2" in refusal(made.pixels, made.examples(torch.arange(2)).x)


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"z": LATENTS}, "holds z; a .safetensors or .npz file with the array `latents` (N, C, H, W)"),
        ({"latents": LATENTS[0]}, "`latents` is (4, 3, 5) of float32; (N, C, H, W)"),
        ({"latents": LATENTS.long()}, "of int64; (N, C, H, W) of floating-point numbers"),
        ({"latents": LATENTS[:0]}, "N 1 or more"),
        ({"latents": LATENTS, "label": LABEL[:9]}, "`label` is (9,), but there are 40 latents"),
        ({"latents": LATENTS, "label": TEXT}, "`label` is (40, 6, 8) of float32"),
        ({"latents": LATENTS, "label": LABEL - 9}, "(N,) of class numbers from 0"),
        ({"latents": LATENTS, "drop": LABEL}, "cannot be named 'drop'"),
        ({"latents": LATENTS, "a b": LABEL}, "cannot be named 'a b'"),
        ({"latents": LATENTS / 0}, "hold NaN or infinity"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, arrays: dict[str, torch.Tensor], part: str) -> None:
    save_file(arrays, tmp_path / "a.safetensors")
    message = refusal(tmp_path / "a.safetensors")
    assert part in message and "a.safetensors" in message
    np.savez(tmp_path / "a.npz", **{name: array.numpy() for name, array in arrays.items()})
    assert part in refusal(tmp_path / "a.npz")


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
def test_torn_files_are_refused_by_name(tmp_path: Path, ending: str) -> None:
    place = tmp_path / f"a{ending}"
    assert "there is no such file" in refusal(place)
    save_latents(tmp_path / "a.safetensors", LATENTS)
    np.savez(tmp_path / "a.npz", latents=LATENTS.numpy())
    whole = place.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"hello", whole[:3]):
        place.write_bytes(content)
        assert f"{place}: is torn" in refusal(place) and "write it again" in refusal(place)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", latents=np.array([{}, 3], dtype=object))
    assert "more than numbers" in refusal(tmp_path / "a.npz")


@pytest.mark.usefixtures("unchecked")
def test_saving_checks_before_it_writes(tmp_path: Path) -> None:
    for name, arrays in (("a.pt", {}), ("a.safetensors", {"label": LABEL[:3]})):
        with pytest.raises(ValueError, match=r"a\.pt: the ending|there are 40 latents"):
            save_latents(tmp_path / name, LATENTS, **arrays)
    assert not list(tmp_path.iterdir())


def test_fields_are_checked(file: Path) -> None:
    for fields in ({"scale": 0.0}, {"num_classes": -1}, {"test_share": 1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(fields))} is"):
            Latents(str(file), **fields)
    with pytest.raises(ValueError, match="holds the label 6; allowed are 7 or more"):
        Latents(str(file), num_classes=3).spec()
    save_latents(file, LATENTS)
    with pytest.raises(ValueError, match="holds no array `label`"):
        Latents(str(file), num_classes=3).spec()
