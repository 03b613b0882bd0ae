from __future__ import annotations

from minigrid.core.actions import Actions
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX

from onpath import codes


def test_the_codes_are_those_of_minigrid() -> None:
    names = {"empty": codes.EMPTY, "wall": codes.WALL, "goal": codes.GOAL, "agent": codes.AGENT}
    assert names == {name: OBJECT_TO_IDX[name] for name in names}
    assert (COLOR_TO_IDX["green"], COLOR_TO_IDX["grey"]) == (codes.GREEN, codes.GREY)
    assert [int(action) for action in (Actions.left, Actions.right, Actions.forward, Actions.done)] == [
        codes.LEFT,
        codes.RIGHT,
        codes.FORWARD,
        codes.DONE,
    ]
    assert max(OBJECT_TO_IDX.values()) + 1 == codes.NUM_OBJECTS
    assert max(COLOR_TO_IDX.values()) + 1 == codes.NUM_COLOURS
    assert max(*STATE_TO_IDX.values(), 3) + 1 == codes.NUM_STATES  # a door's state, or the agent's direction
