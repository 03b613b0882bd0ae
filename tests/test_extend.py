"""docs/extend.md is followed to the letter, from a folder outside the package."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "extend.md"
BLOCKS = dict(re.findall(r"`(\w+\.\w+)`:\n\n```\w+\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
# As the console script does: its own folder is first on sys.path, and not the working directory.
SCRIPT = "import sys\nfrom onpath.cli import main\nmain()\n"
LOAD = """
import json, onpath
run = onpath.load("runs/{name}", device="cpu")
objects = [run.parts.process.schedule, run.denoiser, run.parts.objective, run.parts.sampler, run.parts.source]
print(json.dumps([f"{{type(o).__module__}}:{{type(o).__qualname__}}" for o in objects]))
print(json.dumps(run.sample(num_samples=3, seed=0).x.tolist()))
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for name, text in BLOCKS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "onpath").write_text(SCRIPT)
    return tmp_path


def run(folder: Path, *command: str, **environment: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, *command], check=False, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_has_these_files() -> None:
    assert set(BLOCKS) == {"mine.py", "mine.yaml", "more.py", "more.yaml"}


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("mine", {"mine:Square", "mine:Table"}),
        ("more", {"mine:Table", "more:Counting", "more:FixedTime", "more:Cooling"}),
    ],
)
def test_the_page_works_as_written(here: Path, name: str, classes: set[str]) -> None:
    run(here, "bin/onpath", "train", f"{name}.yaml")
    rows = [json.loads(line) for line in (here / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 20
    saved = (here / "runs" / name / "config.yaml").read_text()
    assert all(f"class: {name}" in saved for name in classes)
    loaded, tokens = run(here, "-c", LOAD.format(name=name), PYTHONPATH=str(here)).splitlines()
    assert classes <= set(json.loads(loaded))
    if name == "more":  # every command finds the classes, not only `train`
        drawn = json.loads(run(here, "bin/onpath", "sample", f"runs/{name}", "--num", "3", "--json"))
        assert json.loads(tokens) == drawn["tokens"]
