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
from onpath.reports import contents, drawings
from onpath.reports.contents import Contents, Note

RELOAD_SECONDS = 10
_REFERENCE = "text"  # the mode of figures that are of the held-out text itself


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
        "is_text": run.is_text,
        "command": " ".join(["onpath", *map(str, command)]) if command else "",
        "recipe": str(command[1]) if len(command) > 1 and command[0] == "train" else "",
        "environment": dict(run.environment),
        "step": run.step,
        "seconds": run.seconds,
        "written": run.written,
        "metrics": run.metrics,
        "every": run.every,
        "evaluation": list(run.evaluation),
        "traces": list(run.traces),
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
        told["mask_shares"] = states.mask_shares(step) if step else None
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
    script = "\n".join(_part(name) for name in ("charts.js", "player.js", "plans.js", "texts.js", "page.js"))
    style = _part("page.css")
    data = json.dumps({"format": 1, "runs": runs, "reload": RELOAD_SECONDS if live else 0}, allow_nan=False)
    return environment.from_string(_part("page.html")).render(
        runs=runs,
        live=live,
        reload=RELOAD_SECONDS,
        written=contents.now(),
        results=results(runs),
        figures=figures(runs),
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
    """The tables of a text evaluation: {metrics, rows}, sets and modes with the same metrics in one table.

    rows: {set, mode, is_reference, entries}; an entry is what a run reached: {run, index, metrics, n}, n None where its
    metrics are not of equally many. is_reference: of the held-out text itself, beside which samples are to be read;
    such rows stand first.
    """
    tables: list[dict[str, Any]] = []
    for (name, mode), entries in _text_entries(runs).items():
        metrics = list(dict.fromkeys(metric for entry in entries for metric in entry["metrics"]))
        table = next((one for one in tables if set(one["metrics"]) & set(metrics)), None)
        if table is None:
            tables.append(table := {"metrics": [], "rows": []})
        table["metrics"] += [metric for metric in metrics if metric not in table["metrics"]]
        is_reference = mode.split(" ")[0] == _REFERENCE
        table["rows"].append({"set": name, "mode": mode, "is_reference": is_reference, "entries": entries})
    for table in tables:
        table["rows"].sort(key=lambda row: not row["is_reference"])
    return tables


def _text_entries(runs: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """What each run on text reached, by set and mode."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for index, run in enumerate(runs):
        by_mode: dict[tuple[str, str], dict[str, Any]] = {}
        for row in run["evaluation"] if run["is_text"] else ():
            by_mode.setdefault((row["set"], row["mode"]), {})[row["metric"]] = row
        for (name, mode), metrics in by_mode.items():
            plain = by_mode.get((name, mode.split(" ")[0]), {})
            if metrics is plain or _values(metrics) != _values(plain):  # another sampler changes nothing in some modes
                sizes = {row.get("n") for row in metrics.values()}
                entry = {"run": run["name"], "index": index, "metrics": metrics}
                found.setdefault((name, mode), []).append(entry | {"n": sizes.pop() if len(sizes) == 1 else None})
    return found


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


def _figure(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if isinstance(value, float) else "–"


def _titled(metric: str) -> str:
    """A metric as a heading."""
    words = metric.replace("_", " ")
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
