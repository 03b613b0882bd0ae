"""The page: one HTML file that holds everything, asks no network, and trusts nothing that it shows."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from onpath.config import RunConfig
from onpath.records import write_atomically
from onpath.reports import completions, contents, drawings
from onpath.reports.contents import Contents, Note

RELOAD_SECONDS = 10
_LEAST_HEIGHT = 32  # of a picture, in pixels of the screen; of a strip, which has two rows, more
_LEAST_STRIP = 72
_FORWARDS = "forwards"
_REFERENCES = {
    "text": {"text": "the text itself, for comparison"},
    "image": {"held-out": "held-out images", "train": "training images, the floor"},
}  # modes of figures that are of data and not of samples, by what a run generates
_ORDER = (_FORWARDS, "frechet", "kernel", "precision", "recall", "class_agreement", "copied", "nearest_ratio")
_HEADINGS = {"frechet": "Fréchet"}


def write(paths: Sequence[Path], output: Path, *, live: bool = False) -> None:
    """Writes the report of the runs at `paths` to the file `output`; the folders are only read.

    live: the page loads itself again every ten seconds. ValueError where a path holds no run, two are the same, or the
    extra `report` is not installed.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"report: {', '.join(map(str, paths))} names a run twice; give each run once")
    names = _names(paths)
    runs = [contents.read(path, name, len(paths)) for path, name in zip(paths, names, strict=True)]
    write_atomically(output, page([facts(run) for run in runs], live=live))


def facts(run: Contents) -> dict[str, Any]:
    """Everything that the page knows of a run, as plain data."""
    notes = list(run.notes)
    command = run.environment.get("command") or []
    told: dict[str, Any] = {
        "name": run.name,
        "path": str(run.folder.path),
        "subject": run.subject,
        "command": " ".join(["onpath", *map(str, command)]) if command else "",
        "recipe": str(command[1]) if len(command) > 1 and command[0] == "train" else "",
        "environment": dict(run.environment),
        "step": run.step,
        "seconds": run.seconds,
        "written": run.written,
        "metrics": run.metrics,
        "every": run.every,
        "evaluation": list(run.evaluation),
        "traces": [*(trace for trace in run.traces if trace["kind"] != "image"), *completions.traces(run.completions)],
        "completions": completions.table(run.completions),
        "pictures": [trace for trace in run.traces if trace["kind"] == "image"],
        "num_steps": 0,
        "kinds": {},
        "settings": [],
        "schedule": None,
        "ramps": [],
        "mask_shares": None,
    }
    try:
        told |= _drawn(run.folder.config(), run.step, notes)
    except Exception as error:  # a config of another version, a class that is not there any more: report the rest
        notes.append(Note(f"config.yaml is not understood, so settings and schedule are not drawn ({error})."))
    return told | {"notes": [{"what": note.what, "command": note.command} for note in notes]}


def _drawn(data: Mapping[str, Any], step: int, notes: list[Note]) -> dict[str, Any]:
    config = RunConfig.parse(data)
    told: dict[str, Any] = {
        "kinds": dict(drawings.kinds(config)),
        "settings": drawings.settings(config),
        "schedule": drawings.schedule_curve(config.schedule.make(), config.grid.make()),
        "num_steps": 0,
    }
    try:
        states = drawings.States.of(config)
        told["num_steps"] = states.num_steps
        # rollouts are of the weights that the policy had then
        told["mask_shares"] = states.mask_shares(step) if step and config.experience is None else None
    except Exception as error:  # the data of a dead run may be gone
        notes.append(Note(f"The states of training cannot be drawn again ({error})."))
    return told | {"ramps": drawings.ramps(config, told["num_steps"] or max(step, 1))}


def page(runs: Sequence[Mapping[str, Any]], *, live: bool = False) -> str:
    """The HTML of a report on runs as `facts` tells them; ValueError where jinja2 is not installed."""
    jinja2 = require()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": _duration, "figure": _figure, "share": _share, "titled": _titled}
    environment.filters["interval"] = _between
    script = "\n".join(
        _part(f"{name}.js") for name in ("charts", "player", "plans", "searches", "texts", "drift", "page")
    )
    style = _part("page.css")
    markup = ("pictures", "completions")
    told = [{name: value for name, value in run.items() if name not in markup} for run in runs]
    data = json.dumps({"format": 1, "runs": told, "reload": RELOAD_SECONDS if live else 0}, allow_nan=False)
    return environment.from_string(_part("page.html")).render(
        runs=runs,
        subjects=sorted({run["subject"] for run in runs}),
        live=live,
        reload=RELOAD_SECONDS,
        written=contents.now(),
        results=results(runs),
        figures=figures(runs),
        sheets=sheets(runs),
        has_searches=any(_is_search(row) for run in runs for row in run["evaluation"]),
        has_trees=any(trace["kind"] == "search" for run in runs for trace in run["traces"]),
        has_drift=any(map(_is_drift, (row for run in runs for row in run["evaluation"]))),
        comparison=comparison(runs),
        style=style,
        script=script,
        data=_inert(data),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def require() -> Any:
    """The package jinja2; ValueError where it is not installed."""
    try:
        import jinja2
    except ImportError as error:
        raise ValueError(
            f'report: it needs {error.name}, which is not installed; install it with: pip install "onpath[report]"'
        ) from error
    return jinja2


def results(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The success tables: for each set its modes, for each mode what every run reached; `low` begins the axis."""
    sets: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for index, run in enumerate(runs):
        by_mode: dict[tuple[str, str], dict[str, Any]] = {}
        for row in run["evaluation"]:
            by_mode.setdefault((row["set"], row["mode"]), {})[row["metric"]] = row
        for (name, mode), metrics in by_mode.items():
            if "success" in metrics:
                entry = {"run": run["name"], "index": index, "metrics": metrics, "ci": _interval(metrics["success"])}
                sets.setdefault(name, {}).setdefault(mode, []).append(entry)
    tables = []
    for name, modes in sets.items():
        least = min(entry["ci"][0] for entries in modes.values() for entry in entries)
        low = next(start for start in (0.95, 0.9, 0.8, 0.5, 0.0) if least >= start)
        tables.append({"set": name, "modes": modes, "low": low})
    return tables


def figures(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tables of evaluations of text and images: {subject, metrics, rows, facts}, sets and modes with the same
    metrics in one table.

    rows: {set, mode, reference, entries}; an entry is what a run reached: {run, index, metrics, n}, n None where its
    metrics are not of equally many. reference: in words, what the row is of where it is not of samples but of data,
    beside which samples are to be read, else ""; such rows stand first. facts: in words, how it was measured.
    """
    tables: list[dict[str, Any]] = []
    for (subject, name, mode), entries in _entries(runs).items():
        metrics = list(dict.fromkeys(metric for entry in entries for metric in entry["metrics"]))
        table = next((one for one in tables if one["subject"] == subject and _alike(one["metrics"], metrics)), None)
        if table is None:
            tables.append(table := {"subject": subject, "metrics": [], "rows": [], "facts": []})
        table["metrics"] += [metric for metric in metrics if metric not in table["metrics"]]
        table["facts"] = list(dict.fromkeys([*table["facts"], *_facts(entries)]))
        reference = _REFERENCES[subject].get(mode.split(" ")[0], "")
        table["rows"].append({"set": name, "mode": mode, "reference": reference, "entries": entries})
    for table in tables:
        table["rows"].sort(key=lambda row: not row["reference"])
        table["metrics"].sort(key=lambda metric: _ORDER.index(metric) if metric in _ORDER else len(_ORDER))
    return tables


def _alike(some: Sequence[str], others: Sequence[str]) -> bool:
    """Whether figures belong into one table: they share a metric, or are all of samples of images."""
    return bool(set(some) & set(others)) or set(_ORDER).issuperset([*some, *others])


def _entries(runs: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """What each run on text or images reached, by what it generates, set and mode."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for index, run in enumerate(runs):
        by_mode: dict[tuple[str, str], dict[str, Any]] = {}
        for row in run["evaluation"] if run["subject"] in _REFERENCES else ():
            if not _is_drift(row):
                by_mode.setdefault((row["set"], row["mode"]), {})[row["metric"]] = row
        for (name, mode), metrics in by_mode.items():
            plain = by_mode.get((name, mode.split(" ")[0]), {})
            if metrics is plain or _values(metrics) != _values(plain):  # another sampler changes nothing in some modes
                sizes = {row.get("n") for row in metrics.values()}
                spent = next((row["nfe"] for row in metrics.values() if isinstance(row.get("nfe"), int | float)), None)
                shown = metrics if spent is None else metrics | {_FORWARDS: {"value": spent}}
                entry = {"run": run["name"], "index": index, "metrics": shown}
                entry["n"] = sizes.pop() if len(sizes) == 1 else None
                found.setdefault((run["subject"], name, mode), []).append(entry)
    return found


def _facts(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """How the figures of images were measured, in words."""
    rows = [row for entry in entries for row in entry["metrics"].values() if row.get("features")]
    return [
        f"Seen by the network {row['features']} (sha256 {str(row.get('checksum'))[:12]}…), beside as many images of "
        f"the {row.get('reference')} split."
        for row in rows
    ]


def sheets(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The pictures of runs on images, by mode: {title, is_strip, figures}, sheets of samples before strips of steps.

    figures: {run, index, pictures} of each run that has any in the mode; a strip is one picture of each sample.
    """
    found: dict[tuple[bool, str], dict[int, list[Any]]] = {}
    for index, run in enumerate(runs):
        for trace in run["pictures"]:
            is_strip = bool(trace.get("length"))
            shown = [_scaled(one, _LEAST_STRIP if is_strip else _LEAST_HEIGHT) for one in trace["pictures"]]
            found.setdefault((is_strip, str(trace.get("mode"))), {}).setdefault(index, []).extend(shown)
    return [
        {
            "title": _REFERENCES["image"].get(mode, mode),
            "is_strip": is_strip,
            "figures": [{"run": runs[index]["name"], "index": index, "pictures": of} for index, of in by_run.items()],
        }
        for (is_strip, mode), by_run in sorted(found.items(), key=lambda item: item[0][0])
    ]


def _scaled(one: Mapping[str, Any], least: int) -> dict[str, Any]:
    """A picture as many times larger as makes it `least` pixels high."""
    scale = max(1, -(-least // int(one["height"])))
    return {**one, "width": scale * one["width"], "height": scale * one["height"]}


def _is_drift(row: Mapping[str, Any]) -> bool:
    """Whether a row is of drift, which has a section of its own."""
    return "offset" in row


def _is_search(row: Mapping[str, Any]) -> bool:
    """Whether a row is what a search solved at a budget, which is drawn as a curve."""
    return row["metric"] == "success" and isinstance(row.get("search"), str) and isinstance(row.get("budget"), int)


def _values(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {name: row["value"] for name, row in metrics.items()}


def comparison(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of all runs side by side: {path, values, default, shown, differ}, a value None where it is absent.

    shown: some run departs from the default, or has none; differ: the runs do not agree.
    """
    understood = [run for run in runs if run["settings"]]
    found = [{row["path"]: row for row in run["settings"]} for run in understood]
    rows = []
    for path in dict.fromkeys(path for settings in found for path in settings):
        held = [settings.get(path) for settings in found]
        values = [row and row["value"] for row in held]
        rows.append(
            {
                "path": path,
                "values": values,
                "default": next(row["default"] for row in held if row),
                "shown": any(row["differs"] for row in held if row),
                "differ": len(set(values)) > 1,
            }
        )
    return {"runs": [run["name"] for run in understood], "rows": rows}


def _interval(row: Mapping[str, Any]) -> list[float]:
    interval = row.get("ci95")
    if isinstance(interval, list) and len(interval) == 2 and all(isinstance(end, int | float) for end in interval):
        return [max(0.0, interval[0]), min(1.0, interval[1])]
    return [row["value"], row["value"]]


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _part(name: str) -> str:
    return (resources.files("onpath.reports") / name).read_text(encoding="utf-8")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _figure(value: Any, digits: int = 4) -> str:
    if isinstance(value, float):
        return f"{value:,.{digits}g}".replace("-", "−")
    return f"{value:,}" if isinstance(value, int) else "–"


def _between(interval: Sequence[Any], digits: int = 4) -> str:
    """Two ends, told apart where the first is below 0."""
    low, high = (_figure(end, digits) for end in interval)
    return f"{low} to {high}" if low.startswith("−") else f"{low}–{high}"


def _titled(metric: str) -> str:
    """A metric as a heading."""
    words = _HEADINGS.get(metric, metric.rpartition("/")[2].replace("_", " "))
    return words[:1].upper() + words[1:]


def _share(row: Mapping[str, Any]) -> str:
    """A share with as many digits as its tasks can tell apart."""
    size = row.get("n")
    return f"{row['value']:.4f}" if isinstance(size, int) and size > 1000 else f"{row['value']:.3f}"


def _inert(data: str) -> str:
    """JSON that cannot end the script element that holds it, nor be read as markup."""
    return data.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    """A hash by which the page's security policy lets this text run, and nothing else."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
