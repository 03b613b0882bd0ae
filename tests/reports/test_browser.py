"""The page in a real browser, from disk: it plays, obeys the keyboard, switches to dark, and is silent and quick."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Page, chromium
from folders import NASTY, made

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
    before = tab.run(path)
    tab.run("document.querySelector('[name=curve-scale][value=linear]').click()")
    assert tab.run(path) != before
    tab.run("document.querySelector('#curve-charts svg.plot').focus()")
    tab.press("ArrowRight")
    assert texts(tab, "#curve-charts figure:first-child .legend li")[:2] == ["step 1", "one train 1.5"]
    tab.run("document.querySelector('#curve-charts details').open = true")
    tab.wait("document.querySelector('#curve-charts tbody tr') !== null")
    assert texts(tab, "#curve-charts figure:first-child tbody tr:first-child td")[0] == "1.5"


@pytest.mark.parametrize("width", [390, 1600])
def test_nothing_sticks_out(tab: Page, report: str, width: int) -> None:
    tab.size(width, 900)
    tab.open(report)
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
