from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from jaxtyping import TypeCheckError

from onpath.data.mazes import MazeExpert
from onpath.envs import mazes
from onpath.envs.expert import distance, solve
from onpath.envs.gridworld import at_goal, follow, read
from onpath.envs.splits import belongs
from onpath.envs.symmetry import orbit
from onpath.rng import Key

IDS = torch.arange(400)
VARIANTS = [
    {"side": 9},
    {"side": 9, "ties": "uniform", "num_actions": 7, "starts_per_goal": 4},
    {"side": 11, "braid": 0.0, "suffixes": False, "length": 20},
    {"side": 19, "split": "test", "episodes": 100, "rotate": True, "reflect": True, "ties": "uniform"},
]


@pytest.mark.parametrize("options", VARIANTS)
def test_examples_are_shortest_plans_to_their_goals(options: dict) -> None:
    source = MazeExpert(**options)
    spec, batch = source.spec(), source.examples(IDS)
    assert batch.x.shape == (400, spec.length)
    worlds, agents = read(batch.cond["image"])
    lengths = (batch.x != source.end_id).sum(1)
    assert torch.equal(batch.x == source.end_id, torch.arange(spec.length) >= lengths[:, None])
    assert torch.equal(lengths, distance(solve(worlds), agents))
    assert at_goal(worlds, follow(worlds, agents, batch.x, lengths)).all()
    assert belongs(
        source.split, orbit(worlds.walls.long(), Key(purpose="mazes/split")), Key(purpose="mazes/split")
    ).all()


def test_starts_share_a_maze_and_a_goal() -> None:
    worlds, agents = read(MazeExpert(side=9, starts_per_goal=4, suffixes=False).examples(IDS).cond["image"])
    groups = torch.cat([worlds.walls.flatten(1).long(), worlds.goal], dim=1).view(100, 4, -1)
    assert (groups == groups[:, :1]).all() and len(groups[:, 0].unique(dim=0)) > 95
    assert len(agents.position.view(100, 8).unique(dim=0)) > 95


def test_starts_are_uniform_over_those_that_the_canvas_allows() -> None:
    whole, short = (MazeExpert(side=9, suffixes=False, length=length) for length in (60, 8))
    ids = torch.arange(20_000)
    full, cut = ((source.examples(ids).x != 3).sum(1) for source in (whole, short))
    assert int(cut.max()) == 8 < int(full.max())
    # a start is drawn within a maze, so mazes with few such starts weigh as much as others: no exact thinning of `full`
    share = torch.bincount(full.clamp(max=9), minlength=10)[1:9] / (full <= 8).sum()
    assert torch.bincount(cut, minlength=9)[1:].div(len(ids)).tolist() == pytest.approx(share.tolist(), abs=0.03)
    worlds, agents = mazes.tasks("train", Key(purpose="lengths"), ids, 9, 0.5)
    uniform = distance(solve(worlds), agents).double()
    assert float(full.double().mean()) == pytest.approx(float(uniform.mean()), abs=0.2)


def test_the_canvas_holds_nearly_all_tasks_and_a_run_keeps_it() -> None:
    source = MazeExpert(side=9)
    assert source.settled() == {"length": 24} and source.spec().length == 24
    worlds, agents = mazes.tasks("validation", Key(3), torch.arange(2000), 9, 0.5)
    longer = float((distance(solve(worlds), agents) > 24).double().mean())
    assert longer < 0.02
    (remark,) = source.remarks
    assert "of 4,096 tasks in mazes of side 9 with braid 0.5" in remark and "more than 24 actions" in remark
    assert replace(source, length=60).remarks[0].split("braid 0.5, ")[1].startswith("0 need")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 12}, "side is 12; allowed are odd"),
        ({"side": 5}, "side is 5; allowed are 7 to 61"),
        ({"side": 63}, "side is 63; allowed are 7 to 61"),
        ({"braid": -0.1}, "braid is -0.1"),
        ({"length": 0}, "length is 0"),
        ({"rotate": True}, "set without `episodes`"),
        ({"split": "dev"}, "split"),
    ],
)
def test_options_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeCheckError), match=message):
        MazeExpert(**options)
