"""Rules of the house that a machine can check: sizes, names, and what an import costs."""

from __future__ import annotations

import ast
import json
import pkgutil
import re
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import onpath

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "onpath"
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = sorted(info.name for info in pkgutil.walk_packages(onpath.__path__, "onpath."))
HEAVY = {"transformers", "diffusers", "peft", "datasets", "minigrid", "gymnasium", "matplotlib", "tensorboard"}

MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
MAX_MEDIAN_FUNCTION_LINES = 15
MAX_PARAMETERS = 7
MAX_SOURCE_LINES = 30_000  # see docs/decisions.md, 24

Function = ast.FunctionDef | ast.AsyncFunctionDef


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(path: Path) -> list[Function]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def length(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def num_parameters(function: Function) -> int:
    args = function.args
    names = [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
    # the fields of a network's config stand in its constructor, as those of a dataclass do; the run gives it the spec
    return len([name for name in names if name not in ("self", "cls", "spec")])


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_file_sizes(path: Path) -> None:
    assert num_lines(path) <= MAX_FILE_LINES
    too_long = {f.name: length(f) for f in functions(path) if length(f) > MAX_FUNCTION_LINES}
    assert not too_long, f"functions over {MAX_FUNCTION_LINES} lines: {too_long}"
    too_many = {f.name: num_parameters(f) for f in functions(path) if num_parameters(f) > MAX_PARAMETERS}
    assert not too_many, f"functions with over {MAX_PARAMETERS} parameters: {too_many}"


def test_whole_size() -> None:
    lengths = [length(function) for path in FILES for function in functions(path)]
    assert statistics.median(lengths) <= MAX_MEDIAN_FUNCTION_LINES
    assert sum(num_lines(path) for path in FILES) < MAX_SOURCE_LINES


def test_no_drawers() -> None:
    assert not [path for path in FILES if path.stem in {"utils", "util", "helpers", "misc", "common"}]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_the_command_line_prints(path: Path) -> None:
    if path == SOURCE / "cli.py":
        return
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_top_level_namespace() -> None:
    namespace: dict[str, Any] = {}
    exec("from onpath import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(onpath.__all__) == set(dir(onpath))
    assert all(namespace[name].__module__.startswith("onpath.") for name in onpath.__all__)
    # and nothing public is made there that it does not list
    made = {name for name, value in vars(onpath).items() if name[0] != "_" and not isinstance(value, ModuleType)}
    assert made - {"annotations", "TYPE_CHECKING", "Any"} <= set(onpath.__all__)


def test_import_is_light() -> None:
    loaded = json.loads(run_python("import onpath, sys, json; print(json.dumps(sorted(sys.modules)))"))
    assert not HEAVY & {name.split(".")[0] for name in loaded}


def test_every_module_imports_without_the_extras() -> None:
    modules = [name for name in MODULES if name.rsplit(".", 1)[-1] != "__main__"]
    code = f"import importlib, sys, json\nfor name in {modules!r}: importlib.import_module(name)\n"
    loaded = json.loads(run_python(code + "print(json.dumps(sorted(sys.modules)))"))
    assert not HEAVY & {name.split(".")[0] for name in loaded}


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys, json\nsys.argv = ['onpath', '--help']\nfrom onpath.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    loaded = {name.split(".")[0] for name in json.loads(run_python(code).splitlines()[-1])}
    assert not (HEAVY | {"torch", "numpy", "jaxtyping", "pydantic"}) & loaded


def test_the_readme_maps_every_file() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    full = [path for path in FILES if path.read_text(encoding="utf-8").strip()]
    missing = [str(path.relative_to(SOURCE)) for path in full if str(path.relative_to(SOURCE)) not in readme]
    assert not missing, f"not in the file map of README.md: {missing}"


def public_classes() -> set[str]:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in FILES]
    return {node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef) if node.name[0] != "_"}


def test_every_public_class_has_a_place_in_the_reference() -> None:
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", reference))
    assert not public_classes() - named, "say in docs/reference.md which of the nouns these are"
