"""Demonstrations on disk: .npz (arrays) and .jsonl (one object a line), checked row by row when read."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from onpath.codes import AGENT, GOAL, GREEN, GREY, NUM_COLOURS, NUM_OBJECTS, NUM_STATES, WALL

_COLOURS = {WALL: GREY, GOAL: GREEN}  # as MiniGrid paints them
_KEYS = ("grid", "direction", "actions")


@dataclass(frozen=True)
class Trajectories:
    """N demonstrations: what was seen at the start, and the actions taken from there.

    image: (N, W, H, 3) uint8 as MiniGrid's FullyObsWrapper gives it, indexed [x, y]. direction: (N,) int64, 0 to 3.
    actions: (N, T) int64, of which the first num_actions[n] count; the rest is 0.
    """

    image: UInt8[Tensor, "N W H 3"]
    direction: Int64[Tensor, "N"]
    actions: Int64[Tensor, "N T"]
    num_actions: Int64[Tensor, "N"]

    @property
    def size(self) -> int:
        return len(self.direction)


def save(path: str | Path, trajectories: Trajectories) -> None:
    """Writes a file that `load` reads; the ending of `path` says which kind: .npz or .jsonl."""
    path = Path(path)
    image, actions = trajectories.image.cpu().numpy(), trajectories.actions.cpu().numpy()
    direction, length = trajectories.direction.cpu().numpy(), trajectories.num_actions.cpu().numpy()
    if _kind(path) == ".npz":
        np.savez_compressed(path, grid=image, direction=direction, actions=actions, length=length)
        return
    with path.open("w", encoding="utf-8") as file:
        for row in range(trajectories.size):
            record = {
                "grid": image[row].tolist(),
                "direction": int(direction[row]),
                "actions": actions[row, : length[row]].tolist(),
            }
            file.write(json.dumps(record, separators=(",", ":")) + "\n")


def load(path: str | Path, num_actions: int, max_seq_len: int) -> Trajectories:
    """Reads and checks a file of demonstrations.

    .npz: `grid` (N, W, H, 3), or (N, W, H) with the objects alone, `direction` (N,), `actions` (N, T) and `length`
    (N,), which may be left out where every row has T actions. .jsonl: the same keys for one demonstration a line.
    Raises ValueError naming the file, the row, what stands there, what may, and what to do.
    """
    path = Path(path)
    kind = _kind(path)
    if not path.is_file():
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise ValueError(
            f"{path}: there is no such file{where}; give the path of an .npz or .jsonl file of demonstrations"
        )
    arrays = _read_npz(path) if kind == ".npz" else _read_jsonl(path)
    check = _Checker(path, "line" if kind == ".jsonl" else "row")
    return check.trajectories(arrays, num_actions, max_seq_len)


def _kind(path: Path) -> str:
    if path.suffix not in (".npz", ".jsonl"):
        raise ValueError(
            f"{path}: the ending is {path.suffix!r}; demonstrations are kept in .npz or .jsonl files; convert it "
            "(onpath.data.trajectory_files.save writes both)"
        )
    return path.suffix


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if name in (*_KEYS, "length")}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise ValueError(
            f"{path}: cannot be read as an .npz archive ({error}); it is torn or another kind of file: copy it again, "
            "or write it with np.savez"
        ) from error
    except Exception as error:  # an array in it fails in many ways
        raise ValueError(
            f"{path}: cannot be read as numbers ({error}). Rows of different shapes make an array of objects: pad "
            f"`actions` to one length T, say how many count in `length`, and keep grids of one size in a file"
        ) from error


def _read_jsonl(path: Path) -> dict[str, np.ndarray]:
    rows = list(_json_rows(path))
    if not rows:
        raise ValueError(f"{path}: holds no demonstration; write one JSON object a line")
    lengths = [len(row["actions"]) for row in rows]
    actions = np.zeros((len(rows), max(lengths)), dtype=np.int64)
    for padded, row in zip(actions, rows, strict=True):
        padded[: len(row["actions"])] = row["actions"]
    return {
        "grid": np.stack([row["grid"] for row in rows]),
        "direction": np.array([row["direction"] for row in rows]),
        "actions": actions,
        "length": np.array([row.get("length", n) for row, n in zip(rows, lengths, strict=True)]),
    }


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    shape = None
    with path.open(encoding="utf-8", errors="backslashreplace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                raise ValueError(f"{path}, line {number}: is empty; write one JSON object a line")
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(
                    f"{path}, line {number}: is not JSON ({error}) but {_cut(line)}; write one object a line, whole"
                ) from error
            if not isinstance(row, dict):
                raise ValueError(
                    f"{path}, line {number}: is not an object but {_cut(line)}; write {{{', '.join(_KEYS)}}}"
                )
            _need_keys(row, f"{path}, line {number}")
            row = {name: _integers(row[name], name, f"{path}, line {number}") for name in row if name in _ALLOWED_NDIM}
            if row.get("length", 0) > len(row["actions"]):
                raise ValueError(
                    f"{path}, line {number}: the length is {row['length']}; allowed: 1 to {len(row['actions'])}, the "
                    f"number of its actions; repair the row"
                )
            if shape is not None and row["grid"].shape != shape:
                raise ValueError(
                    f"{path}, line {number}: the grid has shape {row['grid'].shape}, the ones before {shape}; "
                    "keep grids of one size in a file"
                )
            shape = row["grid"].shape
            yield row


_ALLOWED_NDIM = {"grid": (2, 3), "direction": (0,), "actions": (1,), "length": (0,)}


def _integers(value: Any, name: str, where: str) -> np.ndarray:
    """A JSON value as an integer array; nested lists of unequal length and fractions are refused."""
    try:
        array = np.array(value)
    except ValueError as error:
        raise ValueError(f"{where}: the lists of `{name}` differ in length; every column needs the same") from error
    if array.size == 0 and name == "actions":
        array = array.astype(np.int64)
    if array.ndim not in _ALLOWED_NDIM[name]:
        dims = " or ".join(map(str, _ALLOWED_NDIM[name]))
        raise ValueError(f"{where}: `{name}` has {array.ndim} dimensions; it needs {dims}; repair the row")
    if array.dtype.kind not in "iu":
        raise ValueError(
            f"{where}: `{name}` holds {array.dtype} values, {_cut(value)}; it needs integers (no fractions, no NaN); "
            "repair the row"
        )
    return array


def _cut(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value.strip() if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:60]} …"


def _need_keys(found: Mapping[str, Any], where: str) -> None:
    missing = [name for name in _KEYS if name not in found]
    if missing:
        raise ValueError(
            f"{where}: {', '.join(missing)} missing; needed are {', '.join(_KEYS)}, and `length` may be; there are "
            f"{', '.join(found) or 'none'}: add or rename"
        )


@dataclass(frozen=True)
class _Checker:
    """Turns arrays into Trajectories, or says in which row of which file they cannot be."""

    path: Path
    unit: str

    def trajectories(self, arrays: dict[str, np.ndarray], num_actions: int, max_seq_len: int) -> Trajectories:
        _need_keys(arrays, str(self.path))
        for name, array in arrays.items():
            self._numeric(name, array)
        size = len(np.atleast_1d(arrays["grid"]))
        if size == 0:
            raise ValueError(f"{self.path}: holds no demonstration; write at least one")
        actions = arrays["actions"]
        self._shape("grid", arrays["grid"], (3, 4), size)
        self._shape("direction", arrays["direction"], (1,), size)
        self._shape("actions", actions, (2,), size)
        length = arrays.get("length", np.full(size, actions.shape[1] if actions.ndim == 2 else 0))
        self._shape("length", length, (1,), size)
        length = self._lengths(length.astype(np.int64), actions.shape[1], max_seq_len)
        actions = self._actions(actions.astype(np.int64), length, num_actions)[:, :max_seq_len]
        direction = arrays["direction"].astype(np.int64)
        self._refuse((direction < 0) | (direction > 3), direction, "direction", "0 (+x), 1 (+y), 2 (-x), 3 (-y)")
        image = self._image(arrays["grid"], direction)
        return Trajectories(*map(torch.from_numpy, (image, direction, np.ascontiguousarray(actions), length)))

    def _numeric(self, name: str, array: np.ndarray) -> None:
        if array.dtype.kind in "iu":
            return
        advice = f"cast it, for instance {name}.astype(np.int64)"
        if array.dtype.kind == "f" and np.isnan(array).any():
            row = int(np.isnan(array.reshape(len(array), -1)).any(1).argmax()) if array.ndim else 0
            advice = f"row {row} holds NaN, so repair that first; pad `actions` with any action and give `length`"
        raise ValueError(f"{self.path}: `{name}` has dtype {array.dtype}; integers are needed. {advice}")

    def _shape(self, name: str, array: np.ndarray, ndim: tuple[int, ...], size: int) -> None:
        wanted = {"grid": "(N, W, H, 3) or (N, W, H)", "actions": "(N, T)"}.get(name, "(N,)")
        channels = name == "grid" and array.ndim == 4 and array.shape[-1] != 3
        if array.ndim not in ndim or array.shape[0] != size or channels:
            raise ValueError(
                f"{self.path}: `{name}` has shape {array.shape}; {wanted} is needed, with N = {size} as in `grid`; "
                "write it with np.savez in that shape"
            )

    def _lengths(self, length: np.ndarray, width: int, max_seq_len: int) -> np.ndarray:
        self._refuse((length < 1) | (length > width), length, "length", f"1 to {width}, the number of its actions")
        self._refuse(
            length > max_seq_len, length, "length", f"1 to {max_seq_len}; raise max_seq_len to {length.max()}, or cut"
        )
        return length

    def _actions(self, actions: np.ndarray, length: np.ndarray, num_actions: int) -> np.ndarray:
        unused = np.arange(actions.shape[1]) >= length[:, None]
        actions = np.where(unused, 0, actions)
        bad = (actions < 0) | (actions >= num_actions)
        first = actions[np.arange(len(bad)), bad.argmax(1)]
        self._refuse(bad.any(1), first, "action", f"0 to {num_actions - 1}; raise num_actions, or repair the row")
        return actions

    def _image(self, grid: np.ndarray, direction: np.ndarray) -> np.ndarray:
        channels = (("object", NUM_OBJECTS), ("colour", NUM_COLOURS), ("state", NUM_STATES))
        for index, (name, count) in enumerate(channels[: 3 if grid.ndim == 4 else 1]):
            flat = (grid[..., index] if grid.ndim == 4 else grid).reshape(len(grid), -1)
            outside = (flat < 0) | (flat >= count)
            first = flat[np.arange(len(flat)), outside.argmax(1)]
            allowed = f"0 to {count - 1}, MiniGrid's codes; map other codes to these"
            self._refuse(outside.any(1), first, f"{name} of a cell", allowed)
        agents = (grid[..., 0] if grid.ndim == 4 else grid) == AGENT
        num_agents: np.ndarray = agents.reshape(len(grid), -1).sum(1)
        self._refuse(
            num_agents != 1, num_agents, "number of agents", f"1: one cell of the grid whose object is {AGENT}"
        )
        if grid.ndim == 4:
            state: np.ndarray = np.where(agents, grid[..., 2], 0).reshape(len(grid), -1).sum(1)
            self._refuse(state != direction, state, "agent's state", "the row's `direction`; make both the same")
            return grid.astype(np.uint8)
        image = np.zeros((*grid.shape, 3), dtype=np.uint8)
        image[..., 0] = grid
        for kind, colour in _COLOURS.items():
            image[..., 1][grid == kind] = colour
        image[..., 2] = np.where(agents, direction[:, None, None], 0)
        return image

    def _refuse(self, bad: Any, values: np.ndarray, what: str, allowed: str) -> None:
        if bad.any():
            row = int(bad.argmax())
            number = row + 1 if self.unit == "line" else row
            repair = "" if ";" in allowed else "; repair the row, or leave it out"
            raise ValueError(
                f"{self.path}, {self.unit} {number}: the {what} is {values[row]}; allowed: {allowed}{repair}"
            )
