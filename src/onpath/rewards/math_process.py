"""Judges answers with math-verify in a process of its own: ``python math_process.py SECONDS``. It imports nothing here.

In: a JSON list of pairs, known answer and completion. Out: the word `ready`, then `right` or `wrong` for each pair, in
order. Where one takes longer than SECONDS the process ends there, also out of code that lets no other thread run; on
Linux a pair may use 4 GiB of memory.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys

_MOST_BYTES = 4 * 2**30


def main() -> None:
    from math_verify import parse, verify

    logging.disable()
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    seconds = float(sys.argv[1])
    pairs = json.load(sys.stdin)
    parse("$1$", parsing_timeout=None)  # pyright: ignore[reportArgumentType]  (what is made once is made now)
    _say("ready")
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        for known, completion in pairs:
            faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
            try:
                # without limits of its own, which are signals
                found = parse(completion, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
                right = parse(known, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
                is_right = verify(right, found, timeout_seconds=None)
            except Exception:  # whatever a text does to a parser, it is no answer
                is_right = False
            faulthandler.cancel_dump_traceback_later()
            _say("right" if is_right else "wrong")


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
