"""Whose fault an exception is: a user's mistake gets a message, a bug and a user's own code their traceback."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any, cast

import typer


def message_of(error: Exception) -> str:
    """What to tell a user whose mistake this is, "" where code is at fault: ours, or that of a class of their own."""
    usage: Any = typer.BadParameter.__base__  # click's UsageError, whether typer ships it or imports it
    if isinstance(error, usage):
        said = cast(Any, error).format_message().rstrip(".")
        return f"{said}; the command was `onpath {' '.join(sys.argv[1:])}`. Add --help to see what is allowed"
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    known = (str(Path(__file__).parent), *sysconfig.get_paths().values(), "<")
    own = [frame.f_code for frame in frames if not frame.f_code.co_filename.startswith(known)]
    if own:
        error.add_note(f"This comes from {own[-1].co_qualname} in {own[-1].co_filename}, which is not part of Onpath")
    elif isinstance(error, ValueError) and frames[-1].f_globals["__name__"].startswith("onpath."):
        return str(error)
    elif isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; check the path, who may write there, and the room on its disk"
    elif isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
        reason = (str(error) or "out of memory").splitlines()[0]
        return f"{reason}; lower training.batch_size or --num, raise training.accumulation, or choose a smaller model"
    return ""
