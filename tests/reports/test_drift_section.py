"""The section on drift: there where it was measured, lines from noise to data, readable without pointing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, chromium
from folders import EVALUATION, NASTY, made, made_of_images, measured

from onpath.reports import drift_picture, page


def rows(**more: Any) -> list[dict[str, Any]]:
    """Two times, two lengths of the walk."""
    found = []
    for t, name in ((0.25, ".25"), (0.75, ".75")):
        found.append(measured("loss", 0.5, mode=f"drift t={name} +0", t=t, offset=0) | more)
        for offset, told in ((1, "+1"), ("all", "all")):
            for metric, value in (("loss_ratio", 1.5), ("floor", 1.25), ("bias", -0.125)):
                ci95 = [value - 0.0625, value + 0.0625]
                place = {"mode": f"drift t={name} {told}", "t": t, "offset": offset, "ci95": ci95}
                found.append(measured(metric, value, **place) | more)
    return found


def test_a_report_has_it_where_it_was_measured(tmp_path: Path) -> None:
    plain, drifted = made(tmp_path / "a"), made_of_images(tmp_path / "b")
    drifted.write_evaluation(rows())
    page.write([plain.path], tmp_path / "out.html")
    assert 'id="drift"' not in (tmp_path / "out.html").read_text()
    page.write([plain.path, drifted.path], tmp_path / "out.html")
    text = (tmp_path / "out.html").read_text()
    assert 'id="drift"' in text and 'href="#drift"' in text
    tables = page.figures([page.facts(page.contents.read(drifted.path, "b"))])
    assert not [row for table in tables for row in table["rows"] if row["mode"].startswith("drift")]


def test_a_picture_for_papers(tmp_path: Path) -> None:
    drift_picture.write(rows(), tmp_path / "drift.svg", "a run")
    text = (tmp_path / "drift.svg").read_text()
    assert text.count("<svg") == 1 and len(text) > 5000
    for wrong, told in ((EVALUATION, "no rows"), (rows(), "cannot be written")):
        with pytest.raises(ValueError, match=told):
            drift_picture.write(wrong, tmp_path / "drift.own")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_it_is_drawn_from_noise_to_data(tmp_path: Path) -> None:
    one, two = made_of_images(tmp_path / "one"), made(tmp_path / "two")
    one.write_evaluation([*rows(), *[row | {"mode": f"{row['mode']} {NASTY}"} for row in rows()]])
    two.write_evaluation(rows())
    page.write([one.path, two.path], tmp_path / "report.html")
    with chromium(tmp_path / "profile") as tab:
        tab.size(1280, 900)
        tab.open(f"file://{tmp_path / 'report.html'}")
        assert tab.faults() == []
        titles = tab.run("[...document.querySelectorAll('#drift-charts strong')].map((e) => e.textContent)")
        assert titles == ["Bias of own states", "Loss on own states"] * 3  # two samplers of one run, and another run
        lines = "document.querySelectorAll('#drift-charts figure:first-child path.s')"
        tab.wait(f"{lines}.length === 2")
        path = tab.run(f"{lines}[0].getAttribute('d')")
        points = [tuple(map(float, point.split())) for point in path.removeprefix("M").split("L")]
        assert points[0][0] > points[1][0]  # xs rise, and the axis falls
        told = tab.run("document.querySelector('#drift-charts svg.plot').getAttribute('aria-label')")
        assert "1 step: from -12.5 to -12.5" in told and "from noise" in told
        tab.run("document.querySelector('#drift-charts summary').click()")
        tab.wait("document.querySelectorAll('#drift-charts figure:first-child tbody tr').length === 2")
        first = tab.run("document.querySelector('#drift-charts figure:first-child tbody th').textContent")
        assert first == "0.75"  # from noise to data
