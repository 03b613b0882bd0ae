"""The pages do what they say: their examples run, their configs and command lines are valid, their links lead on."""

from __future__ import annotations

import doctest
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from onpath import cli
from onpath.config import RunConfig
from onpath.recipes import path_of, shipped
from tiny import settings

ROOT = Path(__file__).parents[1]
FOUND = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/es").glob("*.md")]
PAGES = sorted(page for page in FOUND if page.name != "plan.md")
FENCE = re.compile(r"(?:<!-- (?P<mark>not [^>]*?): [^>]+-->\n)?^```(?P<words>[^\n`]*)\n(?P<text>.*?)^```$", re.M | re.S)
FILE = re.compile(r"`([\w.]+)`:\s*$")  # the sentence before a block that is the content of a file
TINY = settings(
    [
        "model.width=16",
        "model.hidden=16",
        "evaluation.num_tasks=3",
        "evaluation.modes=[open@2]",
        "evaluation.latency=false",
    ]
)
SMALL = ["model.width=16", "training.compile=false", "evaluation.num_samples=2", "evaluation.steps=[2]"]
TINY_TEXT = settings([*SMALL, "evaluation.num_examples=8", "grid.steps=4"])
TINY_IMAGES = settings(
    ["model.width=8", "evaluation.num_samples=10", "evaluation.steps=[2]", "evaluation.copies=false"]
)
TINY_PROOFREAD = [
    *TINY_TEXT,
    *(f"objective.{name}.steps=2" for name in ("penalty_keep_mask", "penalty_mask_correct")),
]
RUN_PAGES = ("README.md", "docs/getting-started.md")  # whose commands are run, with smaller sizes
MAX_FRAGMENTS = 3


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. mark: why it is not taken as it stands, from a comment above it; file: its name."""

    page: str
    line: int
    language: str
    text: str
    mark: str | None
    file: str | None


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        before = text[: match.start()].rstrip()
        file = FILE.search(before[before.rfind("\n") + 1 :])
        language = (match["words"].split() or [""])[0]
        line = text[: match.start("text")].count("\n") + 1
        found.append(Block(name_of(page), line, language, match["text"], match["mark"], file[1] if file else None))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
place_of = "{0.page}:{0.line}".format


def pages_with(language: str) -> list[str]:
    return sorted({block.page for block in BLOCKS if block.language == language})


def test_the_blocks_are_read() -> None:
    assert len(BLOCKS) == sum(page.read_text(encoding="utf-8").count("```") for page in PAGES) // 2
    assert {"README.md", "docs/getting-started.md", "docs/concepts.md"} <= set(pages_with("python"))


def shape(page: Path) -> dict[str, object]:
    """What a translation shares with its page: blocks, headings by level, rows of tables, pictures, figures."""
    text = page.read_text(encoding="utf-8")
    prose = FENCE.sub("", text)
    return {
        "blocks": [match["text"] for match in FENCE.finditer(text)],
        "headings": re.findall(r"^(#+) ", prose, re.M),
        "rows": [line.count("|") for line in prose.splitlines() if line.startswith("|")],
        "pictures": [name.removeprefix("../") for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", prose)],
        "figures": sorted(re.findall(r"\d*\.\d+", prose)),
    }


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "es"], ids=lambda page: page.stem)
def test_a_translation_says_as_much_as_its_page(page: Path) -> None:
    assert shape(page) == shape(page.parents[1] / page.name)


def test_fragments_are_rare() -> None:
    assert sum(block.mark is not None for block in BLOCKS) <= MAX_FRAGMENTS


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/fourrooms-demo and runs/shakespeare-proofread, trained for three steps."""
    from onpath.build import build
    from onpath.records import RunFolder

    folder = tmp_path_factory.mktemp("docs")
    for recipe, overrides in (("fourrooms-demo", TINY), ("shakespeare-proofread", TINY_PROOFREAD)):
        config = RunConfig.load(path_of(recipe), overrides)
        parts = build(config)
        parts.trainer.fit(parts.job(), RunFolder.create(folder / "runs" / recipe, config.as_dict()))
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of the page's own, with the trained run in it."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    return tmp_path


@contextmanager
def files_of(page: str, folder: Path) -> Iterator[None]:
    """The files whose content the page shows, importable while the block lasts."""
    known = set(sys.modules)
    for block in BLOCKS:
        if block.page == page and block.file is not None:
            (folder / block.file).write_text(block.text, encoding="utf-8")
    yield
    for name in set(sys.modules) - known:
        if (folder / f"{name}.py").exists():
            del sys.modules[name]


def run_python(block: Block, names: dict[str, Any]) -> None:
    if ">>>" not in block.text:
        exec(compile("\n" * (block.line - 1) + block.text, block.page, "exec"), names)
        return
    example = doctest.DocTestParser().get_doctest(block.text, names, block.page, block.page, block.line - 1)
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(example, out=told.append, clear_globs=False)
    names.update(example.globs)
    assert not told, "".join(told)


@pytest.mark.parametrize("page", pages_with("python"))
def test_the_python_of_a_page_runs(page: str, here: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in BLOCKS:
        if block.page == page and block.language == "python" and block.mark is None:
            run_python(block, names)


CONFIGS = [b for b in BLOCKS if b.language == "yaml" and b.mark is None and "apiVersion:" not in b.text]


@pytest.mark.parametrize("block", CONFIGS, ids=place_of)
def test_a_config_is_valid(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with files_of(block.page, tmp_path):
        config = RunConfig.parse(yaml.safe_load(block.text))
        assert RunConfig.parse(config.as_dict()).as_dict() == config.as_dict()


def commands_of(block: Block) -> list[list[str]]:
    """The arguments of every `onpath …` of a block, be it alone or behind `torchrun … -m`."""
    found = []
    for line in re.sub(r"\\\n\s*", " ", block.text).splitlines():
        if call := re.search(r"(?:^|[\s/])onpath ([a-z].*)", line):
            words = re.sub(r" \$\w+\b", "", call[1])  # options that a shell variable may hold
            found.append(shlex.split(words, comments=True))
    return found


COMMANDS = [
    (place_of(block), command)
    for block in BLOCKS
    if block.language in ("", "sh", "bash", "console") and block.mark is None
    for command in commands_of(block)
] + [
    (f"{name_of(page)}`", shlex.split(inline)[1:])
    for page in PAGES
    for inline in re.findall(r"`(onpath [a-z][^`\n]*)`", page.read_text(encoding="utf-8"))
]


def test_there_are_commands() -> None:
    assert {command[0] for _, command in COMMANDS} >= {"train", "evaluate", "sample", "check", "recipes"}


@pytest.mark.parametrize(("place", "command"), COMMANDS)
def test_a_command_line_is_valid(place: str, command: list[str]) -> None:
    group: Any = typer.main.get_command(cli.app)
    context = group.make_context("onpath", [*command])
    name, subcommand, rest = group.resolve_command(context, [*command])
    if not rest and "`" in place:  # a command that a sentence mentions
        return
    parsed = subcommand.make_context(name, rest, parent=context)  # an unknown option or value raises here
    recipe, overrides = parsed.params.get("recipe"), parsed.params.get("overrides")
    if recipe in {file.stem for file in shipped()}:
        RunConfig.load(path_of(recipe), overrides or [])


LAUNCHES = [
    shlex.split(launch[1].replace("$(", "").replace(")", ""))
    for page in PAGES
    for launch in re.finditer(
        r"^[^`\n]*\btorchrun (-[^`]*?onpath train [^\n`]*)",
        re.sub(r"\\?\n {4,}", " ", page.read_text(encoding="utf-8")),
        re.M,
    )
]


def test_torchrun_understands_its_command_lines() -> None:
    from torch.distributed.run import parse_args

    assert len(LAUNCHES) >= 4
    for words in LAUNCHES:
        parsed = parse_args(words)  # it ends the process where an option of ours looks like one of its own
        assert parsed.module and parsed.training_script == "onpath" and parsed.training_script_args[0] == "train"


@pytest.mark.parametrize("page", RUN_PAGES)
def test_the_commands_of_a_page_run(page: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for place, command in COMMANDS:
        if place.rsplit(":", 1)[0] != page or command[0] == "check":  # the checks train for half a minute
            continue
        begins = command[0] == "train" and "--resume" not in command
        sizes = ({"shakespeare": TINY_TEXT, "digits": TINY_IMAGES}.get(command[1], TINY)) if begins else []
        monkeypatch.setattr(sys, "argv", ["onpath", *command, *sizes])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code, f"{place}: {' '.join(command)}\n{capsys.readouterr().err}"


def anchors_of(page: Path) -> set[str]:
    """The names that headings get where Markdown is shown: lower case, marks dropped, a hyphen for each blank."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def links() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        found += [(name_of(page), target) for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    return sorted(set(found))


@pytest.mark.parametrize(("page", "target"), links())
def test_a_link_leads_somewhere(page: str, target: str) -> None:
    file, _, anchor = target.partition("#")
    goal = (ROOT / page).parent / file if file else ROOT / page
    assert goal.exists()
    assert not anchor or anchor in anchors_of(goal)


def build_site(folder: Path, *options: str) -> Path:
    """The site, built from a copy, so that nothing is written into the checkout."""
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("api", "__pycache__"))
    for page in ROOT.glob("*.md"):
        shutil.copy(page, folder)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", *options, "docs", "site"]
    done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path: Path) -> None:
    site = build_site(tmp_path, "-t", "pages_only")
    pages = list(site.rglob("*.html"))
    assert {"index.html", "concepts.html", "search.html"} <= {page.name for page in pages}
    loads = re.compile(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*", re.I)
    assert not [found for page in pages for found in loads.findall(page.read_text(encoding="utf-8"))]
    assert "<math" in (site / "concepts.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_reference_of_every_class_is_made(tmp_path: Path) -> None:
    page = (build_site(tmp_path) / "reference.html").read_text(encoding="utf-8")
    cells = re.findall(r"<tr[^>]*><td>(.*?)</td>", page, re.S)
    assert cells and all("<a " in cell for cell in cells)
