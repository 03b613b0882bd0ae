"""The page: what it holds equals the files, nothing in it can run or reach out, and it stays small."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from folders import (
    EVALUATION,
    NASTY,
    OF_TEXT,
    PLAN,
    SHEETS,
    STRIP,
    TEXT,
    as_written,
    data_of,
    made,
    made_of_images,
    made_of_text,
    measured,
)

from onpath.records import RunFolder
from onpath.reports import contents, page
from tiny import tiny


class Elements(HTMLParser):
    """The tags of a page with their attributes, and its text outside scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.inside = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


def test_the_data_of_the_page_are_those_of_the_files(tmp_path: Path) -> None:
    folder = made(tmp_path / "a")
    page.write([folder.path], tmp_path / "out.html")
    (run,) = data_of(tmp_path / "out.html")["runs"]
    rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["set"] == "train"]
    assert run["metrics"]["train"]["step"] == [row["step"] for row in train]
    assert run["metrics"]["train"]["accuracy"] == [row["accuracy"] for row in train]
    assert run["metrics"]["train"]["loss"] == [1.5, 0.1 + 0.2, None]
    assert run["evaluation"] == json.loads((folder.path / "evaluation.json").read_text()) == EVALUATION
    assert run["traces"] == [as_written(PLAN)]
    assert run["environment"] == json.loads((folder.path / "environment.json").read_text())
    written = {row["path"]: row["value"] for row in run["settings"]}
    config = yaml.safe_load((folder.path / "config.yaml").read_text())
    assert written["training.steps"] == str(config["training"]["steps"])
    assert written["model"] == config["model"]["kind"]
    assert written["seed"] == "0"
    assert run["num_steps"] == 3 and len(run["schedule"]["grid"]) == 11 and run["mask_shares"]["steps"] == [0, 1, 2]


def test_the_tables_can_be_read_without_scripts(tmp_path: Path) -> None:
    page.write([made(tmp_path / "a").path], tmp_path / "out.html")
    text = Elements(tmp_path / "out.html").text
    assert "Finished after 3 steps" in text
    assert "open@2 a 0.750 0.500–0.900" in text and "0.700" in text
    assert "ms per decision batch1 p50 3.5" in text
    assert "training.steps 3 0" in text


def test_nothing_of_the_files_is_markup(tmp_path: Path) -> None:
    folder = made(tmp_path / "<b>run & one")
    (folder.path / "environment.json").write_text(json.dumps({"command": ["train", NASTY], "packages": {NASTY: NASTY}}))
    (folder.path / "evaluation.json").write_text(json.dumps([measured(set=NASTY, mode=NASTY)]))
    folder.append_metrics({"step": 4, "set": NASTY, NASTY: 1.0})
    trace = as_written(PLAN) | {"set": NASTY, "actions": [NASTY] * 3}
    (folder.path / "samples" / "traces.jsonl").write_text(json.dumps(trace) + "\n")
    (folder.path / "config.yaml").write_text(yaml.safe_dump({NASTY: NASTY}))
    page.write([folder.path], tmp_path / "out.html")
    found = Elements(tmp_path / "out.html")
    scripts = [attributes for tag, attributes in found.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}]
    assert not [tag for tag, _ in found.tags if tag in ("img", "b", "iframe", "object", "link")]
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in found.text and "{{ 7*7 }}" in found.text  # as words
    (run,) = data_of(tmp_path / "out.html")["runs"]
    assert run["evaluation"][0]["mode"] == NASTY and run["metrics"][NASTY][NASTY] == [1.0]
    assert run["traces"][0]["actions"] == [NASTY] * 3


def test_the_scripts_never_parse_markup() -> None:
    code = "".join(path.read_text() for path in Path(page.__file__).parent.glob("*.js"))
    assert len(code) > 10_000
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", code)


def test_the_page_asks_nothing_of_a_network(tmp_path: Path) -> None:
    page.write([made(tmp_path / "a").path], tmp_path / "out.html")
    found = Elements(tmp_path / "out.html")
    links = [value for _, attributes in found.tags for name, value in attributes.items() if name in ("src", "href")]
    assert links and all((value or "").startswith("#") for value in links)
    (policy,) = [a["content"] for tag, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy and policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert "@import" not in (tmp_path / "out.html").read_text() and "url(" not in (tmp_path / "out.html").read_text()


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    paths = [made(tmp_path / "one" / "run").path, made(tmp_path / "two" / "run", "seed=5").path]
    page.write(paths, tmp_path / "out.html")
    data = data_of(tmp_path / "out.html")
    assert [run["name"] for run in data["runs"]] == ["one/run", "two/run"]
    (table,) = page.results(data["runs"])
    assert [entry["run"] for entry in table["modes"]["open@2"]] == ["one/run", "two/run"]
    assert table["low"] == 0.5
    rows = {row["path"]: row for row in page.comparison(data["runs"])["rows"]}
    assert rows["seed"]["values"] == ["0", "5"] and rows["seed"]["differ"] and rows["seed"]["shown"]
    assert not rows["model.width"]["differ"] and not rows["training.clip_norm"]["shown"]


def test_a_page_on_text(tmp_path: Path) -> None:
    page.write([made_of_text(tmp_path / "a").path], tmp_path / "out.html")
    (run,) = data_of(tmp_path / "out.html")["runs"]
    assert run["subject"] == "text" and run["traces"] == [as_written(TEXT)] and run["mask_shares"]
    found = Elements(tmp_path / "out.html")
    ids = {attributes.get("id") for _, attributes in found.tags}
    assert "texts" in ids and "plans" not in ids
    assert "nelbo 2.75 2.7–2.8 2.5 20" in found.text
    samples, reference = "samples@4 64 60–68 0.5 20", "the text itself, for comparison 63 59–67 0.25 20"
    assert found.text.index(reference) < found.text.index(samples)
    assert "No run has been evaluated" not in found.text and "Share of tasks solved" not in found.text


def test_a_page_on_images(tmp_path: Path) -> None:
    page.write([made_of_images(tmp_path / "a").path], tmp_path / "out.html")
    found = Elements(tmp_path / "out.html")
    ids = {attributes.get("id") for _, attributes in found.tags}
    assert "samples" in ids and not ids & {"plans", "texts"}
    floor, samples = (
        "test training images, the floor – 0.25 −0.0125 −0.05 to 0.02",
        "test samples@4 8 3.75 – 0.5 0.4–0.6",
    )
    assert floor in found.text and found.text.index(floor) < found.text.index(samples)
    assert "Seen by the network digits (sha256 0123456789ab…), beside as many images of the test split." in found.text
    shown = [attributes for tag, attributes in found.tags if tag == "img"]
    files = [one["png"] for trace in [*SHEETS, STRIP] for one in trace.pictures]
    assert [attributes["src"] for attributes in shown] == [f"data:image/png;base64,{data}" for data in files]
    assert shown[0]["alt"] == "held-out images, class three" and shown[0]["height"] == "32"
    assert shown[4]["alt"] == "denoising@2, class three: from noise on the left to the sample on the right"
    (run,) = data_of(tmp_path / "out.html")["runs"]
    assert not run["traces"] and "pictures" not in run  # the pictures are there once
    assert run["subject"] == "image" and not run["notes"] and "Times really trained" in found.text


def test_several_runs_on_images_and_others(tmp_path: Path) -> None:
    paths = [made_of_images(tmp_path / "a").path, made(tmp_path / "b").path, made_of_images(tmp_path / "c").path]
    page.write(paths, tmp_path / "out.html")
    found = Elements(tmp_path / "out.html")
    assert {"samples", "plans"} <= {attributes.get("id") for _, attributes in found.tags}
    runs = [page.facts(contents.read(path, name)) for path, name in zip(paths, "abc", strict=True)]
    (table,) = page.figures(runs)
    assert [entry["run"] for entry in table["rows"][0]["entries"]] == ["a", "c"] and len(table["facts"]) == 1
    assert [(one["title"], [figure["run"] for figure in one["figures"]]) for one in page.sheets(runs)] == [
        ("held-out images", ["a", "c"]),
        ("samples@4", ["a", "c"]),
        ("denoising@2", ["a", "c"]),
    ]


def test_pictures_are_no_way_in(tmp_path: Path) -> None:
    folder = made_of_images(tmp_path / "a")
    (good,) = STRIP.pictures
    wrong = [{"png": good["png"] + '" onload="alert(1)'}, {"png": ""}, {"width": -1}, {"height": "9"}, {"label": 3}]
    lines = [as_written(STRIP) | {"task": i, "pictures": [dict(good) | one]} for i, one in enumerate(wrong)]
    lines.append(as_written(STRIP) | {"task": 9, "mode": NASTY, "pictures": [dict(good) | {"label": NASTY}]})
    (folder.path / "samples" / "traces.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page.write([folder.path], tmp_path / "out.html")
    found = Elements(tmp_path / "out.html")
    (image,) = [attributes for tag, attributes in found.tags if tag == "img"]
    assert set(image) == {"src", "width", "height", "alt"} and NASTY in (image["alt"] or "")
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]


def test_text_and_plans_side_by_side(tmp_path: Path) -> None:
    paths = [
        made_of_text(tmp_path / "a").path,
        made(tmp_path / "b").path,
        made_of_text(tmp_path / "c", "samples@8").path,
    ]
    page.write(paths, tmp_path / "out.html")
    runs = data_of(tmp_path / "out.html")["runs"]
    costs, scores = page.figures(runs)
    assert costs["metrics"] == ["bits_per_token", "bits_per_byte"]
    assert [entry["run"] for entry in costs["rows"][0]["entries"]] == ["a", "c"]
    assert [(row["mode"], bool(row["reference"]), len(row["entries"])) for row in scores["rows"]] == [
        ("text", True, 2),
        ("samples@4", False, 1),
        ("samples@8", False, 1),
    ]
    assert [table["set"] for table in page.results(runs)] == ["test"]
    ids = {attributes.get("id") for _, attributes in Elements(tmp_path / "out.html").tags}
    assert {"texts", "plans"} <= ids


def test_what_another_sampler_leaves_alone_is_told_once(tmp_path: Path) -> None:
    folder = made_of_text(tmp_path / "a")
    label = " sampler.order=margin"
    again = [
        row | {"mode": row["mode"] + label, "value": row["value"] + (row["set"] == "generated")} for row in OF_TEXT
    ]
    folder.write_evaluation(again)
    page.write([folder.path], tmp_path / "out.html")
    modes = [row["mode"] for table in page.figures(data_of(tmp_path / "out.html")["runs"]) for row in table["rows"]]
    assert modes == ["nelbo", "text", "samples@4", "samples@4" + label]


def test_a_run_given_twice_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path / "a").path
    with pytest.raises(ValueError, match="names a run twice; give each run once"):
        page.write([path, tmp_path / "b" / ".." / "a"], tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()


def test_a_run_that_has_hardly_begun(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "a", tiny().as_dict())
    page.write([folder.path], tmp_path / "out.html")
    text = Elements(tmp_path / "out.html").text
    assert "no step is logged" in text and "No run has been evaluated yet." in text
    assert f"onpath evaluate {folder.path}" in text
    (run,) = data_of(tmp_path / "out.html")["runs"]
    assert run["mask_shares"] is None and run["schedule"]["grid"]


@pytest.mark.parametrize("config", ["{}", "seed: 1", "model: {kind: gone}", "[1, 2]", "a: [", ""])
def test_a_config_of_another_version_does_not_hide_the_rest(tmp_path: Path, config: str) -> None:
    folder = made(tmp_path / "a")
    (folder.path / "config.yaml").write_text(config)
    page.write([folder.path], tmp_path / "out.html")
    (run,) = data_of(tmp_path / "out.html")["runs"]
    assert run["evaluation"] == EVALUATION and run["schedule"] is None
    assert any("config.yaml is not understood" in note["what"] for note in run["notes"])


def test_data_that_are_gone_cost_only_the_mask_shares(tmp_path: Path) -> None:
    folder = made(tmp_path / "a")
    config = folder.config() | {"data": {"kind": "trajectories", "path": str(tmp_path / "gone.npz"), "num_actions": 3}}
    folder.write_config(config)
    page.write([folder.path], tmp_path / "out.html")
    (run,) = data_of(tmp_path / "out.html")["runs"]
    assert run["schedule"] and run["settings"] and run["mask_shares"] is None
    assert any("cannot be drawn again" in note["what"] for note in run["notes"])


def test_a_long_run_of_many_traces_stays_small(tmp_path: Path) -> None:
    paths = []
    for number in range(2):
        folder = made(tmp_path / str(number))
        rows = ({"step": step, "set": "train"} | {f"metric_{n}": step / 7 for n in range(10)} for step in range(3000))
        (folder.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        events = [[step, position, "forward", 0.1234] for step in range(1, 11) for position in range(40)]
        long = as_written(PLAN) | {"generations": [{"after": 0, "steps": 10, "events": events}] * 30}
        lines = [json.dumps(long | {"task": task}) + "\n" for task in range(8)]
        (folder.path / "samples" / "traces.jsonl").write_text("".join(lines))
        paths.append(folder.path)
    page.write(paths, tmp_path / "out.html")
    assert 3_000_000 < (tmp_path / "out.html").stat().st_size < 5_000_000
    assert "so that it stays small" in Elements(tmp_path / "out.html").text


def test_only_a_live_page_loads_itself_again(tmp_path: Path) -> None:
    path = made(tmp_path / "a").path
    page.write([path], tmp_path / "still.html")
    page.write([path], tmp_path / "live.html", live=True)
    assert data_of(tmp_path / "still.html")["reload"] == 0 and data_of(tmp_path / "live.html")["reload"] == 10
    assert 'id="reload"' in (tmp_path / "live.html").read_text()
    assert 'id="reload"' not in (tmp_path / "still.html").read_text()


def test_a_folder_is_only_read(tmp_path: Path) -> None:
    folder = made(tmp_path / "a")
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    page.write([folder.path], tmp_path / "out.html")
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before


def test_without_jinja2_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ValueError, match=r'needs jinja2, which is not installed; .* pip install "onpath\[report\]"'):
        page.write([made(tmp_path / "a").path], tmp_path / "out.html")
