"""A report that is written again while a run trains."""

from __future__ import annotations

import time
from pathlib import Path

from onpath.reports import page


class Live:
    """Keeps the report of a run fresh while it trains: a context, which ends with a page that no longer reloads itself.

    It writes at most every `every` seconds, and takes at most a twentieth of the time. A report that cannot be
    written must not cost a training: nothing is raised but, at once, that the extra `report` is not installed.
    """

    def __init__(self, run: Path, output: Path, every: float = page.RELOAD_SECONDS) -> None:
        page.require()
        self.run, self.output, self.every = run, output, every
        self._next = 0.0
        self._failed = False

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *raised: object) -> None:
        self._write(live=False)

    def refresh(self) -> str:
        """Writes the page if it is due; returns what went wrong the first time that something did, else ""."""
        return self._write(live=True) if time.monotonic() >= self._next else ""

    def _write(self, live: bool) -> str:
        begun, failure = time.monotonic(), ""
        try:
            page.write([self.run], self.output, live=live)
        except Exception as error:
            failure = "" if self._failed else f"the live report cannot be written, training goes on: {error}"
            self._failed = True
        ended = time.monotonic()
        self._next = ended + max(self.every, 20.0 * (ended - begun))
        return failure
