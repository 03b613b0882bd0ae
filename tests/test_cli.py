"""The command line as its user meets it: what is printed where, exit codes, and what is left on disk."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from onpath import cli, terminal
from tiny import CONFIG, settings

TINY = settings(["model.width=16", "model.hidden=16", "evaluation.num_tasks=5", "evaluation.modes=[open@2]"])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


class Outcome:
    """What a command did: exit code, standard output, standard error."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def onpath(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `onpath ARGUMENTS` in this process, through the entry point of the console script."""

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["onpath", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        found = capsys.readouterr()
        return Outcome(int(stop.value.code or 0), found.out, found.err)

    return call


def test_a_run_from_training_to_evaluation(onpath: Any) -> None:
    done = onpath("train", "fourrooms-demo", *TINY, "--run", "runs/[key] 1")
    assert done.code == 0, done.err
    assert "into runs/[key] 1 on cpu" in done.out and "onpath evaluate runs/[key] 1" in done.out
    run = Path("runs/[key] 1")
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
    }
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["steps"] == 3

    again = onpath("train", "fourrooms-demo", *TINY, "--run", str(run))
    assert again.code == 2 and "already holds a run" in again.err and not again.out

    more = onpath("train", "fourrooms-demo", "--run", str(run), "--resume", "training.steps=5")
    assert more.code == 0 and "resumed at step 3 from step-3" in more.out
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["steps"] == 5
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [3, 3, 5, 5]

    before = (run / "config.yaml").read_bytes()
    other = onpath("train", "fourrooms-demo", "--run", str(run), "--resume", "schedule=cosine")
    assert other.code == 2 and "one run has one schedule" in other.err
    assert (run / "config.yaml").read_bytes() == before

    found = onpath("evaluate", str(run), "latency=false", "drift=null", "--json")
    assert found.code == 0, found.err
    rows = json.loads(found.out)
    assert rows == json.loads((run / "evaluation.json").read_text())
    assert {(row["set"], row["mode"]) for row in rows} == {("test", "open@2")}
    table = onpath("evaluate", str(run), "num_tasks=3", "modes=[open@2, horizon8@10+warm0.5]")
    assert table.code == 0, table.err
    lines = [line.split() for line in table.out.splitlines()]
    heading = ["set", "mode", "n", "success", "[95", "%]", "SPL", "optimal", "return", "bumps", "forwards"]
    assert heading in lines
    assert [line[:3] for line in lines if line[:1] == ["test"] and line[2] == "3"] == [
        ["test", "open@2", "3"],
        ["test", "horizon8@10+warm0.5", "3"],
    ]

    drawn = onpath("sample", str(run), "--num", "2", "--seed", "1", "--steps", "4", "--json")
    assert drawn.code == 0, drawn.err
    found = json.loads(drawn.out)
    assert [len(tokens) for tokens in found["tokens"]] == [40, 40]
    assert max(map(max, found["revealed_at"])) == 3
    assert onpath("sample", str(run), "--num", "1").out.startswith("0 ")
    lines = (run / "samples" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [1, 1, 0]


def test_a_dry_run_writes_nothing(onpath: Any, tmp_path: Path) -> None:
    done = onpath("train", "fourrooms-demo", *TINY, "--dry-run", "schedule=cosine")
    assert done.code == 0, done.err
    resolved = yaml.safe_load(done.out[: done.out.index("estimate")])
    assert resolved["schedule"] == {"kind": "cosine", "alpha_min": 0.0, "alpha_max": 1.0}
    assert "parameters" in done.out and "optimizer steps" in done.out and "min on cpu" in done.out
    assert not list(tmp_path.iterdir())


def test_a_mistake_that_a_dry_run_finds_stands_alone(onpath: Any) -> None:
    done = onpath("train", "fourrooms-demo", *TINY, "--dry-run", "training.warmup_steps=50")
    assert done.code == 2 and done.out == "" and done.err.startswith("error: config: training.warmup_steps is 50")


MISTAKES = [
    (["train", "fourroms-demo"], "'fourroms-demo' is not known; allowed are"),
    (["train", "fourroms-demo"], "did you mean fourrooms-demo?"),
    (["train", "nothing.yaml"], "nothing.yaml cannot be read"),
    (["train", "fourrooms-demo", "training.stesp=3"], "training.stesp: 'stesp' is not known"),
    (["train", "fourrooms-demo", "training.steps=[key]"], "training.steps is ['key']; int is needed"),
    (["train", "fourrooms-demo", "schedule=[/bold]"], "schedule is ['/bold']"),
    (["train", "fourrooms-demo", "evaluation.modes=[opn@1]"], "mode: 'opn@1' is not one"),
    (["train", "fourrooms-demo", "training.epochs=3", "training.steps=0"], "never end"),
    (["train", "fourrooms-demo", "training"], "not of the form key.path=value"),
    (["train", "fourrooms-demo", "--resume"], "runs/fourrooms-demo is not there, so it is not a run"),
    (["train", "fourrooms-demo", "--runs", "x"], "No such option"),
    (["evaluate", "runs/nothing"], "runs/nothing is not there"),
    (["sample", "runs/nothing"], "runs/nothing is not there"),
    (["sample", "runs/nothing", "--num", "0"], "Invalid value for '--num'"),
    (["recipes", "nothing"], "'nothing' is not known"),
    (["trian"], "No such command 'trian'"),
]


def test_plans_are_searched_and_searches_evaluated(onpath: Any, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    assert onpath("train", "fourrooms-demo", *TINY, "--run", run).code == 0
    asked = ("plan", run, "--num", "2", "--budget", "6", "--search", "mctd,greedy", "--json")
    found = onpath(*asked, "search.leaves=2", "search.metas=[{temperature: 1.0, steps: 2}]")
    assert found.code == 0, found.err
    told = json.loads(found.out)
    assert [(one["search"], one["task"], one["forwards"]) for one in told] == [
        ("mctd", 0, 6),
        ("mctd", 1, 6),
        ("greedy", 0, 6),
        ("greedy", 1, 6),
    ]
    carried = onpath("plan", run, "--num", "1", "--budget", "2", "--replan", "9", "--json")
    assert carried.code == 0 and json.loads(carried.out)[0]["forwards"] > 2
    assert "found after" in onpath("plan", run, "--num", "1", "--budget", "2").out

    table = onpath("evaluate", run, "--search", "mctd,beam", "--budget", "2,6", "--tasks", "3", "--traces", "2")
    assert table.code == 0, table.err
    assert "mctd@2" in table.out and "beam@6" in table.out
    rows = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert {(row["search"], row["budget"]) for row in rows} == {("mctd", 2), ("mctd", 6), ("beam", 2), ("beam", 6)}
    traces = (tmp_path / "run" / "samples" / "traces.jsonl").read_text().splitlines()
    assert [(one["kind"], one["mode"], one["task"]) for one in map(json.loads, traces)] == [
        ("search", "mctd@6", 0),
        ("search", "mctd@6", 1),
    ]
    for arguments, message in (
        (("plan", run, "--replan", "4", "--seconds", "1"), "--replan makes many"),
        (("plan", run, "search.metas=[{guidance: 1.0}]"), "condition_dropout of the run is 0"),
        (("plan", run, "--seconds", "0"), "seconds is 0"),
        (("plan", run, "--replan", "4", "--search", "beam"), "tree of mctd"),
        (("plan", run, "grid.steps=3", "search.lefves=1"), "did you mean leaves"),
        (("plan", run, "training.steps=3"), "would have no effect"),
        (("evaluate", run, "search.leaves=1"), "name one with --search"),
        (("evaluate", run, "--search", "mctd", "--budget", "many"), "write forwards like"),
    ):
        refused = onpath(*arguments)
        assert refused.code == 2 and message in " ".join(refused.err.split()), refused.err


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_is_one_message_and_leaves_nothing(
    onpath: Any, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = onpath(*arguments)
    assert done.code == 2
    assert message in done.err and not done.out
    assert "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


def test_a_failed_command_says_so_to_the_shell(tmp_path: Path) -> None:
    code = "from onpath.cli import main; main()"
    command = [sys.executable, "-c", code, "train", "nope"]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: recipe: 'nope'") and not done.stdout


def test_messages_are_not_wrapped(onpath: Any) -> None:
    (line,) = onpath("train", "fourrooms-demo", "trainig.steps=3").err.splitlines()
    assert len(line) > 100


def test_recipes(onpath: Any) -> None:
    table = onpath("recipes")
    assert table.code == 0 and "fourrooms-demo" in table.out
    one = onpath("recipes", "fourrooms-demo")
    assert yaml.safe_load(one.out)["data"]["kind"] == "fourrooms"


def test_a_file_of_ones_own(onpath: Any) -> None:
    Path("mine.yaml").write_text(yaml.safe_dump(CONFIG))
    done = onpath("train", "mine.yaml")
    assert done.code == 0, done.err
    assert Path("runs/mine/config.yaml").exists()


def test_help_is_light() -> None:
    code = (
        "import sys\nfrom onpath.cli import main\nsys.argv = ['onpath', '--help']\n"
        "try:\n    main()\nfinally:\n    sys.stderr.write(' '.join(sorted({n.split('.')[0] for n in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0 and "evaluate" in done.stdout
    assert not {"torch", "numpy", "pydantic", "jaxtyping", "yaml"} & set(done.stderr.split())


def test_a_resume_by_another_recipe_is_refused(onpath: Any) -> None:
    Path("mine.yaml").write_text(yaml.safe_dump(CONFIG))
    assert onpath("train", "mine.yaml", "training.batch_size=4").code == 0
    refused = onpath("train", "nothing", "--run", "runs/mine", "--resume")
    assert refused.code == 2 and "'nothing'" in refused.err
    changed = {**CONFIG, "seed": 3, "training": {**CONFIG["training"], "steps": 5}}
    Path("mine.yaml").write_text("# other words\n" + yaml.safe_dump(changed))
    refused = onpath("train", "mine.yaml", "--resume")
    assert refused.code == 2 and "in training.steps, seed." in " ".join(refused.err.split())
    Path("mine.yaml").write_text("# other words\n" + yaml.safe_dump(CONFIG))
    done = onpath("train", "mine.yaml", "--resume", "training.steps=5")
    assert done.code == 0 and "resumed at step 3" in done.out
    saved = yaml.safe_load(Path("runs/mine/config.yaml").read_text())["training"]
    assert (saved["steps"], saved["batch_size"]) == (5, 4)
    own = onpath("train", "runs/mine/config.yaml", "--run", "runs/mine", "--resume", "training.steps=6")
    assert own.code == 0 and "resumed at step 5" in own.out


@pytest.mark.slow
def test_a_run_is_used_on_another_device_than_it_was_trained_on(onpath: Any) -> None:
    assert onpath("train", "fourrooms-demo", *TINY).code == 0
    path = Path("runs/fourrooms-demo/config.yaml")
    path.write_text(path.read_text().replace("device: cpu", "device: cuda"))
    for command in ("sample", "evaluate"):
        assert onpath(command, str(path.parent), "--device", "cpu").code == 0


def test_only_training_takes_several_processes(onpath: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    refused = onpath("evaluate", "runs/any")
    assert refused.code == 2 and "torchrun started 4; start it without torchrun" in " ".join(refused.err.split())


TEXT = {
    "data": {"kind": "text", "path": "story.txt", "length": 24},
    "model": {"kind": "token_transformer", "width": 16, "num_heads": 2, "depth": 1},
    "objective": "nelbo",
    "training": {"steps": 2, "batch_size": 4, "validation_examples": 4, "warmup_steps": 1},
    "device": "cpu",
}


def test_text_goes_on_from_a_prompt(onpath: Any) -> None:
    Path("story.txt").write_text("To be, or not to be: that is the question.\n" * 20)
    Path("text.yaml").write_text(yaml.safe_dump(TEXT))
    assert onpath("train", "text.yaml").code == 0
    Path("story.txt").unlink()  # a trained run needs no data

    done = onpath("sample", "runs/text", "--prompt", "To ", "--prompt", "b[MASK:2] o", "--num", "2", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert set(found) == {"text", "tokens", "revealed_at", "confidence", "forwards", "prompt"}
    assert found["prompt"] == ["To ", "To ", "b[MASK:2] o", "b[MASK:2] o"]
    assert [len(text) for text in found["text"]] == [24, 24, 5, 5]
    assert all(text.startswith("To ") for text in found["text"][:2]) and found["text"][0] != found["text"][1]
    assert all(text[0] == "b" and text[3:] == " o" for text in found["text"][2:])
    assert found["revealed_at"][2][0] == -1 and found["revealed_at"][2][1] >= 0
    assert found["confidence"][2][0] is None and 0 < found["confidence"][2][1] <= 1
    lines = Path("runs/text/samples/samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == found["text"]

    greedy = [
        onpath("sample", "runs/text", "--prompt", "To ", "--new", "4", "--temperature", "0", "--steps", "2", order).out
        for order in ("sampler.order=left_to_right", "sampler.order=confidence")
    ]
    assert [len(text) for text in greedy] == [8, 8] and greedy[0].startswith("To ")
    unprompted = onpath("sample", "runs/text", "--num", "2", "--length", "6")
    assert [line[:2] for line in unprompted.out.replace("\n1 ", "\0\n1 ").split("\0\n")] == ["0 ", "1 "]

    for arguments, message in (
        (["--prompt", "ö"], "'ö', which is not among"),
        (["--prompt", "To", "--length", "2"], "no room for an answer"),
        (["training.steps=3"], "'training.steps=3' would have no effect"),
        (["--steps", "3", "grid.steps=4"], "leave one of them out"),
    ):
        refused = onpath("sample", "runs/text", *arguments)
        assert refused.code == 2 and message in refused.err and not refused.out


def test_a_text_is_seen_unmasking(onpath: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("story.txt").write_text("To be, or not to be: that is the question.\n" * 20)
    Path("text.yaml").write_text(yaml.safe_dump(TEXT))
    assert onpath("train", "text.yaml").code == 0
    monkeypatch.setattr(terminal, "_SECONDS", 0.0)
    shown = []
    for option in ("--animation", "--no-animation"):
        screen = Console(file=io.StringIO(), force_terminal=True)
        monkeypatch.setattr(terminal, "console", screen)
        assert onpath("sample", "runs/text", "--prompt", "To ", "--steps", "3", option).code == 0
        shown.append(screen.file.getvalue())
    assert all(f"step {step} of 3" in shown[0] for step in range(4)) and "▒" in shown[0]
    assert "step" not in shown[1] and "▒" not in shown[1]


def test_without_prompts_pairs_are_asked_their_own(onpath: Any) -> None:
    sums = [{"prompt": f"{a}+{b}=", "response": str(a + b)} for a in range(1, 12) for b in range(1, 4)]
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    data = {"kind": "pairs", "path": "sums.jsonl", "tokenizer": {"kind": "characters", "end": True}, "length": 12}
    Path("sums.yaml").write_text(yaml.safe_dump(TEXT | {"data": data}))
    assert onpath("train", "sums.yaml").code == 0
    done = onpath("sample", "runs/sums", "--num", "3", "--new", "4", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert set(found["prompt"]) <= {row["prompt"] for row in sums}
    assert all(len(tokens) == len(prompt) + 4 for tokens, prompt in zip(found["tokens"], found["prompt"], strict=True))


def test_puzzles_are_filled(onpath: Any) -> None:
    puzzles = {"evaluation": {"kind": "text", "num_examples": 4, "num_samples": 0, "drift": None}}
    Path("grids.yaml").write_text(yaml.safe_dump(TEXT | puzzles | {"data": {"kind": "sudoku", "blanks": 6}}))
    assert onpath("train", "grids.yaml").code == 0
    puzzle = "12..3.....2..3.1"
    for prompts in ([], ["--prompt", puzzle, "--prompt", puzzle]):
        done = onpath("sample", "runs/grids", *prompts, "--num", "2", "--json")
        assert done.code == 0, done.err
        found = json.loads(done.out)
        asked = [prompt.replace(".", "▒") for prompt in found["prompt"]] if prompts else ["▒" * 16] * 2
        assert len(found["text"]) == len(asked) == (4 if prompts else 2)
        for text, cells in zip(found["text"], asked, strict=True):
            assert len(text) == 16 and set(text) <= set("1234")
            assert all(cell in (blank, "▒") for cell, blank in zip(cells, text, strict=True))
        if not prompts:
            assert [sum(step >= 0 for step in row) for row in found["revealed_at"]] == [6, 6]


def test_a_policy_takes_no_prompt(onpath: Any) -> None:
    assert onpath("train", "fourrooms-demo", *TINY).code == 0
    for arguments in (["--prompt", "left"], ["--new", "3"], ["--length", "3"]):
        refused = onpath("sample", "runs/fourrooms-demo", *arguments)
        assert refused.code == 2 and "FourRoomsExpert, which is not text; leave prompts" in refused.err


def test_the_figures_of_a_text_are_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"set": "validation", "mode": "nelbo", "metric": "bits_per_character", "value": 2.51, "n": 40}
    terminal.show_evaluation([row | {"ci95": [2.4, 2.62], "se": 0.056}, row | {"metric": "length", "ci95": None}])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["set", "mode", "metric", "value", "±", "se", "[95", "%]", "n"]
    assert lines[1] == ["validation", "nelbo", "bits", "per", "character", "2.51", "±", "0.056", "[2.4,", "2.62]", "40"]
    assert lines[2] == ["length", "2.51", "40"]
