"""The page in a real browser, from disk: it plays, obeys the keyboard, switches to dark, and is silent and quick."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Page, chromium
from folders import NASTY, made, made_of_images, made_of_text

from onpath.records import RunFolder, Trace
from onpath.reports import page

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs")
    paths = [made(folder / "one").path, made(folder / "two", "seed=5").path]
    page.write(paths, folder / "report.html")
    return f"file://{folder / 'report.html'}"


def texts(tab: Page, selector: str) -> list[str]:
    return tab.run(f"[...document.querySelectorAll({selector!r})].map((e) => e.textContent.trim())")


def test_it_opens_quickly_and_without_a_word(tab: Page, report: str) -> None:
    tab.size(1280, 900)
    paints = []
    while len(paints) < 5 and min(paints, default=2000) > 1000:  # a busy machine is slow for other reasons
        tab.open(report)
        assert tab.faults() == []
        tab.wait("performance.getEntriesByName('first-contentful-paint').length > 0")
        paints.append(tab.run("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
    assert min(paints) <= 1000
    titles = texts(tab, "#curve-charts strong")
    assert titles[:3] == ["Loss", "NELBO", "Accuracy"]
    assert texts(tab, "#schedule-charts strong")[0] == "Schedule: linear"
    assert tab.run("document.querySelectorAll('#share-charts svg.plot rect.barfill').length") >= 20
    assert "0.75" in " ".join(texts(tab, "#curve-charts .legend b"))


def test_the_plan_unmasks_and_is_walked(tab: Page, report: str) -> None:
    tab.open(report)
    tab.run("document.querySelector('.player').focus()")
    tab.press("Home")
    assert len(texts(tab, ".token.masked")) == 8
    assert texts(tab, ".status")[0].startswith("Forward 0 of 2: 0 of 4 tokens revealed.")
    tab.press("ArrowRight")
    assert texts(tab, ".status")[0] == "Forward 1 of 2: 2 of 4 tokens revealed. Now forward at 1, right at 3."
    assert tab.run("document.querySelectorAll('.board:first-child .plan').length") == 1
    tab.press("ArrowRight")
    assert tab.run("document.querySelectorAll('.board:first-child .plan').length") == 2
    tab.press("ArrowRight")
    assert texts(tab, ".status")[0] == "Action 1 of 3: forward. Now at column 2, row 1, looking right."
    tab.press("ArrowLeft")
    assert texts(tab, ".status")[0].startswith("Forward 2 of 2")
    tab.press("End")
    assert texts(tab, ".status")[0].endswith("looking down. The goal was not reached.")
    tab.press(" ")  # plays from the beginning
    tab.wait("document.querySelector('.player.moving') !== null")
    tab.wait("document.querySelector('.player.moving') === null")
    assert texts(tab, ".status")[0].startswith("Action 3 of 3: right.")
    assert tab.faults() == []


def test_buttons_and_slider(tab: Page, report: str) -> None:
    tab.open(report)
    tab.run("document.querySelector('[aria-label=\"To the beginning\"]').click()")
    tab.run("document.querySelector('.play').click()")
    assert texts(tab, ".play") == ["Pause"]
    tab.run("document.querySelector('.play').click()")
    assert texts(tab, ".play") == ["Play"]
    tab.run(
        "{const s = document.querySelector('.controls [type=range]'); s.value = 4; s.dispatchEvent(new Event('input'))}"
    )
    assert texts(tab, ".status")[0].startswith("Action 2 of 3")
    assert tab.run("document.querySelector('.controls [type=range]').getAttribute('aria-valuetext')") == "4 of 5"


@pytest.fixture(scope="module")
def texts_report(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("texts")
    paths = [made_of_text(folder / "one").path, made_of_text(folder / "two", "samples@8").path]
    page.write(paths, folder / "report.html")
    return f"file://{folder / 'report.html'}"


def pieces(tab: Page) -> list[tuple[str, str]]:
    """Text and class of each token of the first run."""
    found = tab.run(
        "[...document.querySelectorAll('.board:first-child .piece')].map((e) => [e.textContent, e.className.slice(6)])"
    )
    return [(words, names) for words, names in found]


def test_a_text_unmasks(tab: Page, texts_report: str) -> None:
    tab.size(1280, 900)
    tab.open(texts_report)
    assert tab.faults() == []
    assert texts(tab, ".board h3") == ["one", "twosamples@8"]  # a run without this mode shows its own
    tab.run("document.querySelector('.player').focus()")
    tab.press("Home")
    assert pieces(tab) == [("T", "given"), *[("▒", "masked")] * 2, ("▒\n", "masked"), *[("▒", "masked")] * 2]
    assert texts(tab, ".status")[0] == "Step 0 of 4: 0 of 5 tokens revealed."
    tab.press("ArrowRight")
    assert pieces(tab)[1] == ("o", "new w0") and pieces(tab)[3] == ("x\n", "new w0")
    tab.press("ArrowRight")
    assert pieces(tab)[3] == ("x\n", "struck") and pieces(tab)[1] == ("o", "w0")
    assert "line-through" in tab.run("getComputedStyle(document.querySelector('.text .struck')).textDecorationLine")
    assert texts(tab, ".status")[0] == (
        "Step 2 of 4: 2 of 5 tokens revealed; 1 new, 1 masked again. Masked again so far: 1."
    )
    tab.press("ArrowRight")
    assert pieces(tab)[3] == ("↵\n", "new again w4")
    assert "wavy" in tab.run("getComputedStyle(document.querySelector('.text .again')).textDecoration")
    title = "document.querySelectorAll('.board:first-child .piece')[3].title"
    assert tab.run(title) == "Token 4: “↵”, revealed at step 3, probability 0.7, masked again once"
    tab.press("End")
    assert "".join(words for words, _ in pieces(tab)) == "To ↵\nbe"
    assert [names for _, names in pieces(tab)] == ["given", "w0", "w2", "again w4", "w4", "new w6"]
    tab.run("document.querySelector('[name=text-colour][value=probability]').click()")
    assert [names for _, names in pieces(tab)] == ["given", "p6", "p4", "again p4", "p2", "new p6"]
    tab.press("Home")
    tab.press(" ")
    tab.wait("document.querySelector('.player.moving') !== null")
    tab.wait("document.querySelector('.player.moving') === null")
    assert texts(tab, ".status")[0].startswith("Step 4 of 4: 5 of 5 tokens revealed")
    assert tab.faults() == []


def test_end_tokens_that_fill_a_canvas_are_dots(tab: Page, tmp_path: Path) -> None:
    folder = made_of_text(tmp_path / "a")
    events = [(1, place, "<|end|>" if place > 1 else "hi"[place], 0.5) for place in range(6)]
    folder.write_traces([Trace("text", "generated", "samples@4", 0, 6, ({"after": 0, "steps": 1, "events": events},))])
    page.write([folder.path], tmp_path / "out.html")
    tab.open(f"file://{tmp_path / 'out.html'}")
    assert [words for words, _ in pieces(tab)] == ["h", "i", "<|end|>", "·", "·", "·"]


def test_a_text_can_be_read_without_colour(tab: Page, texts_report: str) -> None:
    tab.open(texts_report)
    tab.run("document.querySelector('.board details').open = true")
    tab.wait("document.querySelector('.board tbody tr') !== null")
    rows = [" ".join(texts(tab, f".board tbody tr:nth-child({row}) > *")) for row in (1, 2, 4)]
    assert rows == ["1 T given – ", "2 o 1 0.9 ", "4 ↵ 3 0.7 1×"]


def test_costs_in_bits(tab: Page, texts_report: str) -> None:
    tab.open(texts_report)
    figure = "#curve-charts figure:nth-child(2)"
    assert texts(tab, f"{figure} figcaption")[0] == "NELBOnats per token, a bound"
    tab.run("document.querySelector('[name=curve-unit][value=bits]').click()")
    assert texts(tab, f"{figure} figcaption")[0] == "NELBObits per token, a bound"
    tab.wait(f"document.querySelector('{figure} .legend b') !== null")
    assert texts(tab, f"{figure} .legend b")[0] == "1.262"  # 0.875 / ln 2


def test_dark_and_light(tab: Page, report: str, tmp_path: Path) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    tab.prefer(prefers_color_scheme="light")
    tab.open(report)
    light = tab.run(colour)
    tab.prefer(prefers_color_scheme="dark")
    dark = tab.run(colour)
    assert dark != light
    tab.wait("document.getElementById('theme').textContent.trim() === 'Light'")  # the page is told a little later
    tab.run("document.getElementById('theme').click()")
    assert tab.run(colour) == light
    tab.prefer(prefers_color_scheme="light")
    tab.open(report)
    tab.run("document.getElementById('theme').click()")
    assert tab.run(colour) == dark  # chosen by the button, whatever the system prefers
    tab.picture(tmp_path / "dark.png")
    assert (tmp_path / "dark.png").stat().st_size > 10_000 and tab.faults() == []
    tab.run("document.getElementById('theme').click()")


def test_curves_change_their_scale_and_are_read_by_keys(tab: Page, report: str) -> None:
    tab.open(report)
    path = "document.querySelector('#curve-charts path').getAttribute('d')"
    tab.wait("document.querySelector('#curve-charts path') !== null")  # charts are drawn once their width is known
    before = tab.run(path)
    tab.run("document.querySelector('[name=curve-scale][value=linear]').click()")
    tab.wait("document.querySelector('#curve-charts path') !== null")
    assert tab.run(path) != before
    tab.run("document.querySelector('#curve-charts svg.plot').focus()")
    tab.press("ArrowRight")
    assert texts(tab, "#curve-charts figure:first-child .legend li")[:2] == ["step 1", "one train 1.5"]
    tab.run("document.querySelector('#curve-charts details').open = true")
    tab.wait("document.querySelector('#curve-charts tbody tr') !== null")
    assert texts(tab, "#curve-charts figure:first-child tbody tr:first-child td")[0] == "1.5"


@pytest.mark.parametrize("width", [390, 1600])
def test_nothing_sticks_out(tab: Page, report: str, texts_report: str, width: int) -> None:
    tab.size(width, 900)
    for url in (report, texts_report):
        tab.open(url)
        assert tab.run("document.documentElement.scrollWidth") <= width


def test_words_of_files_stay_words(tab: Page, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "a", {})
    folder.append_metrics({"step": 1, "set": NASTY, NASTY: 2.0})
    text = Trace(
        "text", NASTY, NASTY, 0, 2, ({"after": 0, "steps": 2, "events": [(1, 0, NASTY, 0.5), (2, 0, None, None)]},)
    )
    folder.write_traces([text])
    page.write([folder.path], tmp_path / "out.html")
    tab.open(f"file://{tmp_path / 'out.html'}")
    tab.run("document.querySelector('[aria-label=\"One step back\"]').click()")
    assert any(NASTY in one for one in texts(tab, ".piece"))
    assert tab.run("document.querySelectorAll('img, b.x, iframe').length") == 0 and tab.faults() == []
    tab.run("document.querySelector('[aria-label=\"One step forward\"]').click()")
    assert [texts(tab, f".text .{name}") for name in ("struck", "masked")] == [[NASTY], ["▒"]]  # masked again


def test_a_page_of_a_run_that_has_hardly_begun(tab: Page, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "a", {})
    page.write([folder.path], tmp_path / "out.html", live=True)
    tab.open(f"file://{tmp_path / 'out.html'}")
    assert tab.faults() == []
    assert "Nothing has been logged yet" in texts(tab, "#curve-charts .note")[0]
    assert texts(tab, "#reload") == ["Updating"]
    tab.run("document.getElementById('reload').click()")
    assert texts(tab, "#reload") == ["Paused"]


def test_a_live_page_loads_itself_again(tab: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = made(tmp_path / "a"), tmp_path / "out.html"
    monkeypatch.setattr(page, "RELOAD_SECONDS", 1)
    page.write([folder.path], out, live=True)
    tab.open(f"file://{out}")
    button = "document.getElementById('reload')"
    tab.run(f"{button}.getAttribute('aria-pressed') === 'true' || {button}.click()")
    folder.append_metrics({"step": 4, "set": "train", "loss": 0.25})
    page.write([folder.path], out, live=True)
    tab.wait("document.querySelector('.state')?.textContent.includes('4 steps')")


def test_samples_are_shown_without_a_script(tab: Page, tmp_path: Path) -> None:
    page.write([made_of_images(tmp_path / "one").path, made(tmp_path / "two").path], tmp_path / "report.html")
    tab.size(400, 900)
    tab.open(f"file://{tmp_path / 'report.html'}")
    assert tab.faults() == []
    found = tab.run("[...document.querySelectorAll('#samples img')].map((e) => [e.naturalWidth, e.naturalHeight])")
    assert found == [[14, 4]] * 4 + [[14, 9]]
    assert tab.run("[...document.querySelectorAll('#samples img')].every((e) => e.alt.length > 5)")
    assert tab.run("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize("width", [390, 1280])
def test_the_best_and_the_worst_completion_come_about(tab: Page, tmp_path: Path, width: int) -> None:
    folder = made_of_text(tmp_path / "run")
    folder.append_completions(3, [completion("1243", 1.0, "1243"), completion("1343", 0.5, "1243")])
    page.write([folder.path], tmp_path / "out.html")
    tab.size(width, 900)
    tab.open(f"file://{tmp_path / 'out.html'}")
    assert tab.run("document.documentElement.scrollWidth") <= width and tab.faults() == []
    shown = "#rollout-player .text .piece"
    assert texts(tab, shown) == [*"1243", *"1243", *"1243", *"1243"]
    tab.run("document.querySelector('[name=rollout-mode][value=worst]').click()")
    assert texts(tab, shown)[:4] == [*"1343"] and texts(tab, "#rollout-player .text .wrong") == ["3"]
    assert "line-through" in tab.run("getComputedStyle(document.querySelector('.text .wrong')).textDecorationLine")
    tab.run("document.querySelector('#rollout-player .player').focus()")
    tab.press("Home")
    assert texts(tab, shown)[:4] == ["1", "▒", "▒", "▒"] and texts(tab, "#rollout-player .text .wrong") == []
    columns = tab.run("getComputedStyle(document.querySelector('.text.grid')).gridTemplateColumns").split()
    assert len(columns) == 4 and tab.faults() == []


def completion(first: str, reward: float, solution: str) -> dict[str, Any]:
    """Of a grid of four equal lines: the first cell of each was given, the others came one a step."""
    return {
        "prompt": f"{first[0]}▒▒▒" * 4,
        "completion": first[1:] + solution[1:] * 3,
        "group": 5,
        "reward": reward,
        "rewards": {"sudoku_cells": reward},
        "advantage": reward - 0.75,
        "columns": {"solution": solution * 4},
        "line": 4,
        "words": list(first + solution * 3),
        "revealed_at": [-1, 0, 1, 2] * 4,
        "log_prob": [0.0, -0.5, -0.25, -0.125] * 4,
    }
