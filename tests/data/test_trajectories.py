from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

from onpath.data.shuffle import shuffled
from onpath.data.trajectories import FourRoomsExpert, TrajectoryFile, mazes
from onpath.data.trajectory_files import Trajectories, save
from onpath.envs import fourrooms, symmetry
from onpath.envs.gridworld import Agents, Worlds, at_goal, follow, observe, read, step
from onpath.rng import Key
from onpath.types import Batch

IDS = torch.arange(400)


def same(first: Batch, second: Batch) -> bool:
    names = ("image", "direction")
    return torch.equal(first.x, second.x) and all(torch.equal(first.cond[n], second.cond[n]) for n in names)


def reaches_the_goal(batch: Batch, end_id: int) -> bool:
    """Every row's actions, played from its image, end on the goal with the last one and not before."""
    worlds, agents = read(batch.cond["image"])
    assert torch.equal(agents.direction, batch.cond["direction"])
    lengths = (batch.x != end_id).sum(1)
    assert torch.equal(batch.x == end_id, torch.arange(batch.x.shape[1]) >= lengths[:, None])
    before = follow(worlds, agents, batch.x, lengths - 1)
    after = follow(worlds, agents, batch.x, lengths)
    return bool(at_goal(worlds, after).all()) and not bool(at_goal(worlds, before).any())


VARIANTS = [
    {},
    {"ties": "uniform", "num_actions": 7, "starts_per_goal": 4},
    {"suffixes": False, "length": 36},
    {"episodes": 100, "rotate": True},
    {"episodes": 100, "rotate": True, "reflect": True, "ties": "uniform", "starts_per_goal": 3},
    {"split": "validation", "seed": 5},
]


@pytest.mark.parametrize("options", VARIANTS)
def test_examples_reach_their_goals(options: dict) -> None:
    source = FourRoomsExpert(**options)
    spec, batch = source.spec(), source.examples(IDS)
    assert batch.x.shape == (400, spec.length)
    assert (spec.num_words, spec.mask_id) == (source.num_actions + 1, source.num_actions + 1)
    assert {name: tuple(value.shape[1:]) for name, value in batch.cond.items()} == dict(spec.cond)
    assert batch.given is None and batch.padding is None
    assert reaches_the_goal(batch, end_id=source.num_actions)
    layouts = set(fourrooms.layout_of(read(batch.cond["image"])[0].walls).tolist())
    assert layouts <= set(fourrooms.layouts(source.split).tolist())


@pytest.mark.parametrize("options", [*VARIANTS, {"padding": "zero", "length": 32}])
def test_an_example_depends_on_its_id_alone(options: dict) -> None:
    source = FourRoomsExpert(**options)
    batch = source.examples(IDS)
    for row in (0, 3, 399):
        assert same(source.examples(IDS[row : row + 1]), batch.rows(slice(row, row + 1)))
    order = IDS.flip(0)
    assert same(source.examples(order), batch.rows(order))
    assert not same(replace(source, seed=source.seed + 1).examples(IDS), batch)


def test_starts_share_a_goal() -> None:
    batch = FourRoomsExpert(starts_per_goal=4, suffixes=False).examples(IDS)
    worlds, agents = read(batch.cond["image"])
    groups = torch.cat([worlds.walls.flatten(1).long(), worlds.goal], dim=1).view(100, 4, -1)
    assert (groups == groups[:, :1]).all()
    assert len(groups[:, 0].unique(dim=0)) == 100
    assert len(torch.cat([agents.position, agents.direction[:, None]], dim=1).view(100, 4, 3)[:, :, 0].unique()) > 10


def test_the_optimal_actions_hold_the_examples_own() -> None:
    for source in (FourRoomsExpert(), FourRoomsExpert(episodes=90, reflect=True, ties="uniform")):
        x, optimal = source.examples(IDS).x, source.demonstrations(IDS)[2].optimal
        assert optimal.shape == x.shape
        assert torch.equal(optimal == 0, x == 3)
        assert (optimal.long() >> x & 1)[x < 3].all()


def test_suffixes_are_cut_uniformly() -> None:
    whole = FourRoomsExpert(suffixes=False).examples(torch.arange(20_000))
    cut = FourRoomsExpert().examples(torch.arange(20_000))
    full, rest = (whole.x != 3).sum(1), (cut.x != 3).sum(1)
    assert (rest >= 1).all() and (rest <= full).all()
    for length in (4, 12, 20):
        counts = torch.bincount(rest[full == length], minlength=length + 1)[1:].double()
        expected = counts.sum() / length
        assert float(((counts - expected) ** 2 / expected).sum()) < length + 5 * (2 * length) ** 0.5
    # the mean over what remains of a plan of n actions is (n + 1) / 2
    assert float(rest.double().mean()) == pytest.approx((16.128 + 1) / 2, abs=0.15)


def test_limited_episodes_come_back_shuffled_in_every_epoch() -> None:
    source = FourRoomsExpert(episodes=50, suffixes=False)
    assert source.num_examples == 50
    epochs = [source.examples(torch.arange(50) + 50 * epoch) for epoch in range(3)]
    rows = [epoch.cond["image"].flatten(1).unique(dim=0) for epoch in epochs]
    assert len(rows[0]) == 50
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2])
    assert not torch.equal(epochs[0].x, epochs[1].x)
    # cut and turned anew each time
    source = replace(source, suffixes=True, rotate=True)
    images = torch.cat([source.examples(torch.arange(50) + 50 * epoch).cond["image"] for epoch in range(20)])
    assert len(images.flatten(1).unique(dim=0)) > 500
    assert source.at_split("validation").num_examples is None
    assert source.at_split("train") == source


def test_zero_padding_is_marked_and_cuts() -> None:
    source = FourRoomsExpert(padding="zero", length=8, suffixes=False)
    whole = FourRoomsExpert(suffixes=False).examples(IDS)
    batch, spec = source.examples(IDS), source.spec()
    lengths = (whole.x != 3).sum(1)
    assert (spec.num_words, spec.mask_id, spec.length) == (3, 3, 8)
    assert torch.equal(batch.padding, torch.arange(8) >= lengths[:, None])
    assert torch.equal(batch.x, whole.x[:, :8].masked_fill(batch.padding, 0))
    assert torch.equal(batch.num_free, lengths.clamp(max=8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_actions": 2}, "num_actions is 2; allowed are 3 to 7"),
        ({"num_actions": 8}, "num_actions is 8; allowed are 3 to 7"),
        ({"length": 32}, "length is 32; allowed are 36 or more"),
        ({"padding": "zero", "length": 0}, "length is 0; allowed are 1 or more"),
        ({"starts_per_goal": 0}, "starts_per_goal is 0"),
        ({"episodes": 0}, "episodes is 0"),
        ({"rotate": True}, "set without `episodes`"),
        ({"reflect": True, "ties": "uniform"}, "set without `episodes`"),
        ({"reflect": True, "episodes": 10}, 'choose ties "uniform"'),
        ({"split": "dev"}, "split"),
        ({"ties": "none"}, "ties"),
        ({"padding": "left"}, "padding"),
    ],
)
def test_options_that_cannot_be(options: dict, message: str) -> None:
    # the checker of annotations, which only tests switch on, is first to see a word outside a Literal
    with pytest.raises((ValueError, TypeCheckError), match=message):
        FourRoomsExpert(**options)


# files


def demonstrations(count: int, width: int, height: int) -> Trajectories:
    """Wanderings over open rooms with one block each; five different mazes."""
    key = torch.arange(count)
    walls = torch.zeros(count, width, height, dtype=torch.bool)
    walls[key, 1 + key % 5 % (width - 2), 1] = True
    worlds = Worlds(walls, torch.stack([key * 0, height - 1 + key * 0], dim=1))
    agents = Agents(torch.stack([key % width, key * 0], dim=1), key % 4)
    actions = torch.stack([(key * 7 + t * (3 + key % 4)) % 5 for t in range(9)], dim=1)
    num_actions = 1 + key % 9
    actions = actions.masked_fill(torch.arange(9) >= num_actions[:, None], 0)
    return Trajectories(observe(worlds, agents), key % 4, actions, num_actions)


@pytest.fixture
def file(tmp_path: Path) -> TrajectoryFile:
    path = tmp_path / "wanderings.npz"
    save(path, demonstrations(60, 7, 5))
    return TrajectoryFile(str(path), num_actions=5, max_seq_len=12, validation_share=0.4)


def test_a_file_is_served_as_it_stands(file: TrajectoryFile) -> None:
    source = replace(file, validation_share=0.0)
    data = demonstrations(60, 7, 5)
    assert source.num_examples == 60
    assert source.spec().cond == {"image": (7, 5, 3), "direction": ()}
    assert (source.spec().length, source.spec().num_words, source.spec().mask_id) == (12, 6, 6)
    rows = shuffled(torch.arange(60), 60, Key(0, "trajectories/train"))
    batch = source.examples(torch.arange(60))
    assert torch.equal(batch.cond["image"], data.image[rows])
    assert torch.equal(batch.cond["direction"], data.direction[rows])
    for row, x in zip(rows.tolist(), batch.x.tolist(), strict=True):
        taken = data.actions[row, : data.num_actions[row]].tolist()
        assert x == taken + [5] * (12 - len(taken))


def test_no_maze_stands_in_both_splits(file: TrajectoryFile) -> None:
    parts = [file, file.at_split("validation")]
    assert sum(part.num_examples for part in parts) == 60
    kept = []
    for part in parts:
        image = part.examples(torch.arange(part.num_examples)).cond["image"]
        kept.append(set(mazes(image).tolist()))
        assert len(kept[-1]) >= 1
    assert not kept[0] & kept[1]


def test_a_maze_has_the_number_of_its_mirror_images() -> None:
    worlds, agents = fourrooms.tasks("train", Key(1), torch.arange(512))
    numbers = mazes(observe(worlds, agents))
    image = torch.arange(512) % 8
    assert torch.equal(mazes(observe(*symmetry.transform(worlds, agents, image))), numbers)
    orbits = fourrooms.orbits()[fourrooms.layout_of(worlds.walls)]
    assert len(orbits.unique()) == len(numbers.unique()) == len(torch.stack([orbits, numbers]).unique(dim=1).T)
    data = demonstrations(20, 7, 5).image
    for g in range(8):
        assert torch.equal(mazes(symmetry.transform_image(data, torch.full((20,), g))), mazes(data))


def test_suffixes_of_a_file_start_where_its_actions_lead(file: TrajectoryFile) -> None:
    source = replace(file, suffixes=True, validation_share=0.0)
    data = demonstrations(60, 7, 5)
    ids = torch.arange(300)
    rows = shuffled(ids, 60, Key(0, "trajectories/train"))
    batch = source.examples(ids)
    remaining = (batch.x != 5).sum(1)
    cut = data.num_actions[rows] - remaining
    assert (cut >= 0).all() and (remaining >= 1).all() and len(cut.unique()) > 5
    for n, row in enumerate(rows.tolist()):
        worlds, agents = read(data.image[row : row + 1])
        for action in data.actions[row, : cut[n]]:
            agents = step(worlds, agents, action[None])
        assert torch.equal(observe(worlds, agents)[0], batch.cond["image"][n])
        assert batch.x[n, : remaining[n]].tolist() == data.actions[row, cut[n] : data.num_actions[row]].tolist()


@pytest.mark.parametrize("sides", [(7, 5), (6, 6)])
def test_images_of_a_file_are_turned_with_their_actions(tmp_path: Path, sides: tuple[int, int]) -> None:
    path = tmp_path / "turned.jsonl"
    save(path, demonstrations(60, *sides))
    plain = TrajectoryFile(str(path), num_actions=5, max_seq_len=9, validation_share=0.0)
    turned = replace(plain, rotate=True, reflect=True)
    ids = torch.arange(60)
    before, after = plain.examples(ids), turned.examples(ids)
    seen = set()
    for n in range(60):
        images = {}
        for g in range(8) if sides == (6, 6) else range(0, 8, 2):
            one = torch.tensor([g])
            image = symmetry.transform_image(before.cond["image"][n : n + 1], one)
            images[g] = torch.equal(image[0], after.cond["image"][n]) and torch.equal(
                symmetry.transform_actions(before.x[n : n + 1], one)[0], after.x[n]
            )
        assert any(images.values())
        seen |= {g for g, equal in images.items() if equal and sum(images.values()) == 1}
    assert len(seen) == (8 if sides == (6, 6) else 4)
    worlds, agents = read(after.cond["image"])
    assert torch.equal(agents.direction, after.cond["direction"])
    assert same(turned.examples(ids[7:8]), after.rows(slice(7, 8)))
    assert worlds.walls.shape[1:] == sides


def test_the_expert_recorded_to_a_file_trains_the_same(tmp_path: Path) -> None:
    expert = FourRoomsExpert(suffixes=False)
    path = tmp_path / "expert.npz"
    save(path, expert.record(IDS))
    source = TrajectoryFile(str(path), validation_share=0.2)
    whole = replace(source, validation_share=0.0)
    rows = shuffled(IDS, 400, Key(0, "trajectories/train"))
    assert same(whole.examples(IDS), expert.examples(IDS).rows(rows))
    assert whole.spec() == expert.spec()
    assert reaches_the_goal(replace(source, suffixes=True, rotate=True).examples(IDS), end_id=3)
    assert source.at_split("validation").num_examples == pytest.approx(80, abs=40)


def test_a_file_that_changes_is_read_again(file: TrajectoryFile) -> None:
    source = replace(file, validation_share=0.0)
    assert source.num_examples == 60
    save(source.path, demonstrations(45, 7, 5))
    assert source.num_examples == 45


def test_options_of_a_file_that_cannot_be(file: TrajectoryFile, tmp_path: Path) -> None:
    for options in ({"validation_share": 1.0}, {"max_seq_len": 0}, {"num_actions": 1}, {"split": "test"}):
        with pytest.raises((ValueError, TypeCheckError), match=next(iter(options))):
            replace(file, **options)
    with pytest.raises(ValueError, match="no maze falls into the validation split at validation_share 0"):
        replace(file, validation_share=0.0).at_split("validation").examples(torch.arange(2))
    data = demonstrations(20, 7, 5)
    image = data.image.clone()
    image[:, 6, 4, 0] = 4  # a door
    path = tmp_path / "doors.npz"
    save(path, replace(data, image=image))
    doors = TrajectoryFile(str(path), num_actions=5, validation_share=0.0)
    assert doors.examples(torch.arange(20)).size == 20
    with pytest.raises(ValueError, match=r"doors.npz: suffixes cannot be simulated.*set suffixes=False"):
        replace(doors, suffixes=True).examples(torch.arange(20))
