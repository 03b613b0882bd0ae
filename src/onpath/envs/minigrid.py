"""The real MiniGrid, set to given walls, start and goal: its FourRooms, or a maze. Needs the extra `maze`.

Only the contents of the grid and the agent's place are set; stepping, rewards, time limit and observations are
MiniGrid's own.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from onpath.envs.fourrooms import SIDE
from onpath.envs.gridworld import Agents, Worlds

if TYPE_CHECKING:
    import gymnasium


@dataclass(frozen=True)
class Replay:
    """What became of action sequences in the real environment.

    num_steps: (B,) int64, steps taken until the episode ended or the actions did. reached: (B,), the goal was
    reached. returns: (B,) float64, the sum of rewards.
    """

    num_steps: Int64[Tensor, "B"]
    reached: Bool[Tensor, "B"]
    returns: Float64[Tensor, "B"]


def make(
    worlds: Worlds, agents: Agents, row: int = 0, max_steps: int | None = None
) -> tuple[gymnasium.Env, dict[str, Any]]:
    """The real environment, fully observed, at the start of the task `row`; and its first observation.

    max_steps: None for MiniGrid-FourRooms-v0 itself; else MiniGrid's engine on any walls, with episodes of so many
    steps.
    The environment steps as gymnasium's do; call `place` to set it to another task. Raises ValueError where
    gymnasium and minigrid are not installed.
    """
    wrappers = require().wrappers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import gymnasium

        if max_steps is None:
            inner = gymnasium.make("MiniGrid-FourRooms-v0", disable_env_checker=True)
        else:
            inner = _bare(tuple(worlds.walls.shape[1:]), max_steps)
        env = wrappers.FullyObsWrapper(inner)
    return env, place(env, worlds, agents, row)


def _bare(shape: tuple[int, ...], max_steps: int) -> gymnasium.Env:
    """An environment of MiniGrid without anything in it, to be furnished by `place`."""
    minigrid = require()

    class Bare(minigrid.minigrid_env.MiniGridEnv):
        def _gen_grid(self, width: int, height: int) -> None:
            self.grid = minigrid.core.grid.Grid(width, height)
            self.agent_pos, self.agent_dir, self.mission = (0, 0), 0, "reach the goal"

    width, height = shape
    space = minigrid.core.mission.MissionSpace(mission_func=lambda: "reach the goal")
    return Bare(mission_space=space, width=width, height=height, max_steps=max_steps)


def place(env: gymnasium.Env, worlds: Worlds, agents: Agents, row: int = 0) -> dict[str, Any]:
    """Starts a new episode of `env` (from `make`) on the task `row`, and returns its first observation."""
    base: Any = env.unwrapped
    width, height = worlds.walls.shape[1:]
    if (width, height) != (base.width, base.height):
        raise ValueError(
            f"the real environment is {base.width} x {base.height}; the worlds are {(width, height)}. Give `max_steps` "
            f"for an environment of their size, as FourRooms is {SIDE} x {SIDE}"
        )
    core = require().core
    env.reset(seed=0)  # clears the step count and what is carried; the grid is replaced below
    base.grid = core.grid.Grid(width, height)
    wall = core.world_object.Wall()
    for x, y in worlds.walls[row].nonzero().tolist():
        base.grid.set(x, y, wall)
    base.put_obj(core.world_object.Goal(), *worlds.goal[row].tolist())
    base.agent_pos = tuple(agents.position[row].tolist())
    base.agent_dir = int(agents.direction[row])
    observed: Any = env
    return observed.observation(base.gen_obs())


def replay(
    worlds: Worlds,
    agents: Agents,
    actions: Int64[Tensor, "B L"],
    num_actions: Int64[Tensor, "B"] | None = None,
    max_steps: int | None = None,
) -> Replay:
    """Plays ``actions[b, :num_actions[b]]`` (all of them by default) on task b, until its episode ends.

    max_steps: as in `make`.
    """
    counts = [actions.shape[1]] * len(actions) if num_actions is None else num_actions.tolist()
    outcomes = []
    env = None
    for row, sequence in enumerate(actions.tolist()):
        if env is None:
            env, _ = make(worlds, agents, row, max_steps)
        else:
            place(env, worlds, agents, row)
        outcomes.append(_play(env, sequence[: counts[row]]))
    steps, reached, returns = zip(*outcomes, strict=True) if outcomes else ((), (), ())
    return Replay(
        torch.tensor(steps, dtype=torch.int64),
        torch.tensor(reached, dtype=torch.bool),
        torch.tensor(returns, dtype=torch.float64),
    )


def _play(env: gymnasium.Env, actions: list[int]) -> tuple[int, bool, float]:
    total, terminated, steps = 0.0, False, 0
    for steps, action in enumerate(actions, start=1):  # noqa: B007 (counts the steps taken)
        _, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
        if terminated or truncated:
            break
    return steps, terminated, total


def require() -> Any:
    """The package `minigrid`, imported when first needed and without its greetings.

    ValueError where it or gymnasium is not installed.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import minigrid
            import minigrid.core.grid
            import minigrid.core.mission
            import minigrid.core.world_object
            import minigrid.minigrid_env
            import minigrid.wrappers
        except ImportError as error:
            raise ValueError(
                f"the real environment needs gymnasium and minigrid, and {error.name} is missing; "
                f'install them with: pip install "onpath[maze]"'
            ) from error
    return minigrid
