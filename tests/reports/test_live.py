"""A report that is kept fresh, and that never costs a training."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from folders import data_of, made

from onpath import cli
from onpath.reports.live import Live
from tiny import settings

TINY = settings(["model.width=16", "model.hidden=16", "training.log_every=1", "grid.steps=2"])


def test_it_writes_at_once_and_then_not_before_it_is_due(tmp_path: Path) -> None:
    folder, out = made(tmp_path / "a"), tmp_path / "out.html"
    with Live(folder.path, out, every=3600) as live:
        assert live.refresh() == "" and data_of(out)["reload"] > 0
        folder.append_metrics({"step": 4, "set": "train", "loss": 0.5})
        assert live.refresh() == ""
        assert data_of(out)["runs"][0]["step"] == 3
    assert data_of(out)["runs"][0]["step"] == 4 and data_of(out)["reload"] == 0  # the last word is a still page


def test_what_goes_wrong_is_said_once_and_never_raised(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Live(made(tmp_path / "a").path, tmp_path / "file" / "out.html", every=0) as live:
        assert "cannot be written, training goes on" in live.refresh()
        assert live.refresh() == ""


def test_without_jinja2_it_says_so_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ValueError, match=r"pip install \"onpath\[report\]\""):
        Live(tmp_path, tmp_path / "out.html")


@pytest.fixture
def onpath(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Runs a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["onpath", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0)

    return call


def test_train_evaluate_report(onpath: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(onpath)
    assert onpath("train", "fourrooms-demo", *TINY, "--run", "a", "--live") == 0
    (run,) = data_of(tmp_path / "a" / "report.html")["runs"]
    assert run["metrics"]["train"]["step"] == [1, 2, 3] and not run["traces"]

    assert onpath("evaluate", "a", "num_tasks=3", "modes=[open@2]", "latency=false", "--traces", "1") == 0
    assert onpath("report", "a", "--output", "page.html") == 0
    assert "wrote page.html" in capsys.readouterr().out
    (run,) = data_of(tmp_path / "page.html")["runs"]
    assert [(one["mode"], one["task"]) for one in run["traces"]] == [("open@2", 0), ("closed@2", 0)]
    assert run["evaluation"][0]["step"] == run["traces"][0]["step"] == 3
    assert onpath("report", "nothing") == 2
    assert "so it is not a run" in capsys.readouterr().err
