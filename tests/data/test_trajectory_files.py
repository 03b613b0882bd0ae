from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onpath.data.trajectories import FourRoomsExpert
from onpath.data.trajectory_files import Trajectories, load, save


@pytest.fixture(scope="module")
def recorded() -> Trajectories:
    return FourRoomsExpert().record(torch.arange(25))


@pytest.mark.parametrize("ending", ["npz", "jsonl"])
def test_what_is_saved_is_loaded(recorded: Trajectories, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"some.{ending}"
    save(path, recorded)
    again = load(path, num_actions=3, max_seq_len=40)
    longest = int(recorded.num_actions.max())
    assert torch.equal(again.image, recorded.image)
    assert torch.equal(again.direction, recorded.direction)
    assert torch.equal(again.num_actions, recorded.num_actions)
    assert torch.equal(again.actions[:, :longest], recorded.actions[:, :longest])


@pytest.mark.parametrize("ending", ["npz", "jsonl"])
def test_grids_of_objects_alone_get_their_colours_and_the_direction(
    recorded: Trajectories, tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"objects.{ending}"
    write(path, rows_of(recorded, objects_only=True))
    assert torch.equal(load(path, 3, 40).image, recorded.image)


def test_a_file_without_lengths_uses_every_action(tmp_path: Path) -> None:
    path = tmp_path / "full.npz"
    grid = np.ones((2, 3, 4), dtype=np.uint8)
    grid[:, 0, 0] = 10
    np.savez(path, grid=grid, direction=np.array([0, 3]), actions=np.array([[0, 1, 2], [2, 2, 2]]))
    data = load(path, 3, 3)
    assert data.num_actions.tolist() == [3, 3]
    assert data.image.shape == (2, 3, 4, 3)
    assert data.image[1, 0, 0].tolist() == [10, 0, 3]


def rows_of(data: Trajectories, objects_only: bool = False) -> list[dict[str, Any]]:
    image = data.image[..., 0] if objects_only else data.image
    return [
        {
            "grid": image[n].tolist(),
            "direction": int(data.direction[n]),
            "actions": data.actions[n, : data.num_actions[n]].tolist(),
        }
        for n in range(data.size)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    width = max(len(row["actions"]) for row in rows)
    np.savez(
        path,
        grid=np.array([row["grid"] for row in rows]),
        direction=np.array([row["direction"] for row in rows]),
        actions=np.array([row["actions"] + [0] * (width - len(row["actions"])) for row in rows]),
        length=np.array([row.get("length", len(row["actions"])) for row in rows]),
    )


def small(**changes: Any) -> dict[str, Any]:
    """One demonstration on a 3 x 2 grid."""
    row = {"grid": [[10, 1], [1, 2], [8, 1]], "direction": 0, "actions": [2, 2]}
    return {name: value for name, value in {**row, **changes}.items() if value is not None}


TWO_AGENTS = [[10, 10], [1, 2], [8, 1]]
NO_AGENT = [[1, 1], [1, 2], [8, 1]]
LOOKS_AWAY = [[[10, 0, 2], [1, 0, 0]], [[1, 0, 0], [2, 5, 0]], [[8, 1, 0], [1, 0, 0]]]
BOTH = [
    (small(direction=4), "the direction is 4; allowed: 0"),
    (small(direction=-1), "the direction is -1; allowed: 0"),
    (small(actions=[2, 3]), "the action is 3; allowed: 0 to 2; raise num_actions"),
    (small(actions=[-1]), "the action is -1; allowed: 0 to 2"),
    (small(actions=[2] * 9), "the length is 9; allowed: 1 to 8; raise max_seq_len to 9"),
    (small(length=0), "the length is 0; allowed: 1 to"),
    (small(length=7), "the length is 7; allowed: 1 to"),
    (small(grid=TWO_AGENTS), "the number of agents is 2; allowed: 1"),
    (small(grid=NO_AGENT), "the number of agents is 0; allowed: 1"),
    (small(grid=[[10, 11], [1, 2], [8, 1]]), "the object of a cell is 11; allowed: 0 to 10, MiniGrid's codes"),
    (small(grid=[[10, 1], [1, -2], [8, 1]]), "the object of a cell is -2; allowed: 0 to 10"),
]


@pytest.mark.parametrize("ending", ["npz", "jsonl"])
@pytest.mark.parametrize(("bad", "message"), BOTH)
def test_rows_that_cannot_be(tmp_path: Path, ending: str, bad: dict[str, Any], message: str) -> None:
    path = tmp_path / f"bad.{ending}"
    write(path, [small(), small(), bad])
    where = "line 3" if ending == "jsonl" else "row 2"
    with pytest.raises(ValueError, match=f"bad.{ending}, {where}: {message}"):
        load(path, num_actions=3, max_seq_len=8)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ([4, 6, 0], "the colour of a cell is 6; allowed: 0 to 5"),
        ([4, 5, 4], "the state of a cell is 4; allowed: 0 to 3"),
        ([12, 0, 0], "the object of a cell is 12; allowed: 0 to 10"),
    ],
)
def test_codes_that_a_network_would_take_for_others(tmp_path: Path, cell: list[int], message: str) -> None:
    grid = [[[10, 0, 0], cell], [[1, 0, 0], [2, 5, 0]], [[8, 1, 0], [1, 0, 0]]]
    write(tmp_path / "bad.npz", [small(grid=grid)])
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "bad.npz", 3, 8)


@pytest.mark.parametrize("ending", ["npz", "jsonl"])
def test_an_agent_that_looks_elsewhere_than_it_says(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"bad.{ending}"
    write(path, [small(grid=LOOKS_AWAY, direction=2), small(grid=LOOKS_AWAY)])
    with pytest.raises(ValueError, match="the agent's state is 2; allowed: the row's `direction`"):
        load(path, 3, 8)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps(small(direction=None)), "direction missing; needed are grid, direction, actions"),
        (json.dumps(small(actions=None, grid=None)), "grid, actions missing"),
        (json.dumps(small(grid=[[10, 1], [1], [8, 1]])), "the lists of `grid` differ in length"),
        (json.dumps(small(grid=[[10, 1, 1], [1, 2, 1], [8, 1, 1]])), r"shape \(3, 3\), the ones before \(3, 2\)"),
        (json.dumps(small(grid=[10, 1])), "`grid` has 1 dimensions; it needs 2 or 3"),
        (json.dumps(small(actions=[2, float("nan")])), "`actions` holds float64 values, .*; it needs integers"),
        (json.dumps(small(actions=[2, 0.5])), "`actions` holds float64 values"),
        (json.dumps(small(direction="up")), "`direction` holds"),
        (json.dumps(small(actions=[])), "the length is 0; allowed: 1 to"),
        ("[1, 2]", "is not an object"),
        ("{", "is not JSON"),
        ("", "is empty"),
    ],
)
def test_lines_that_cannot_be(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(small()) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=f"bad.jsonl, line 2: .*{message}"):
        load(path, num_actions=3, max_seq_len=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"direction": None}, "direction missing"),
        ({"actions": np.array([[2.0, np.nan], [2.0, 2.0]])}, "`actions` has dtype float64.*row 0 holds NaN"),
        ({"grid": np.ones((2, 3, 2), dtype=np.float32)}, "`grid` has dtype float32; integers are needed.*astype"),
        ({"direction": np.array([True, False])}, "`direction` has dtype bool"),
        ({"grid": np.ones((2, 3, 2, 4), dtype=np.uint8)}, r"`grid` has shape \(2, 3, 2, 4\); \(N, W, H, 3\) or"),
        ({"direction": np.zeros(3, dtype=np.int64)}, r"`direction` has shape \(3,\); \(N,\) is needed, with N = 2"),
        ({"actions": np.zeros(2, dtype=np.int64)}, r"`actions` has shape \(2,\); \(N, T\) is needed"),
        ({"actions": np.array([[1, 2], [1]], dtype=object)}, "pad `actions` to one length"),
        ({"grid": np.ones((0, 3, 2), dtype=np.uint8)}, "holds no demonstration"),
    ],
)
def test_arrays_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "bad.npz"
    arrays = {"grid": np.array([small()["grid"]] * 2), "direction": np.zeros(2, dtype=np.int64)}
    arrays |= {"actions": np.full((2, 2), 2)} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ValueError, match=f"bad.npz: .*{message}"):
        load(path, num_actions=3, max_seq_len=8)


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such file"):
        load(tmp_path / "none.npz", 3, 8)
    with pytest.raises(ValueError, match=r"the ending is '\.csv'"):
        load(tmp_path / "some.csv", 3, 8)
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ValueError, match=r"torn.npz: cannot be read"):
        load(tmp_path / "torn.npz", 3, 8)
    (tmp_path / "void.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"void.jsonl: holds no demonstration"):
        load(tmp_path / "void.jsonl", 3, 8)
