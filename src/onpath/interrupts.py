"""Ctrl-C and SIGTERM as a wish to stop, which a training grants between two steps."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Interrupts:
    """While it is entered, the first Ctrl-C or SIGTERM is noted, and a second one has its usual effect.

    Called, it says whether one was noted. number: of the signal, None before. Only the main thread may enter it.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._usual: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._usual[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._usual.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self.number is not None

    @property
    def name(self) -> str:
        """The noted signal in words."""
        return "Ctrl-C" if self.number == signal.SIGINT else "SIGTERM"

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended: 128 and its number."""
        return 128 + (self.number or 0)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.__exit__()
