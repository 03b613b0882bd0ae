"""docs/extend.md is followed to the letter, from a folder outside the package."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "extend.md"


def test_the_page_works_as_written(tmp_path: Path) -> None:
    blocks = dict(re.findall(r"`(mine\.\w+)`:\n\n```\w+\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    assert set(blocks) == {"mine.py", "mine.yaml"}
    for name, text in blocks.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    code = "import sys; sys.argv = ['onpath', 'train', 'mine.yaml']; from onpath.cli import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "runs" / "mine" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 20
    assert "mine:Square" in (tmp_path / "runs" / "mine" / "config.yaml").read_text()
