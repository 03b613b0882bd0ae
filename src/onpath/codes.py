"""MiniGrid's numbers for what lies in a cell, its colour and the actions. Source: ``minigrid.core``."""

from __future__ import annotations

EMPTY, WALL, GOAL, AGENT = 1, 2, 8, 10
GREEN, GREY = 1, 5
NUM_OBJECTS, NUM_COLOURS, NUM_STATES = 11, 6, 4  # of each channel of an image; the agent's state is its direction
LEFT, RIGHT, FORWARD, DONE = 0, 1, 2, 6  # DONE does nothing
