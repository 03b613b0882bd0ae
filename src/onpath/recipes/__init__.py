"""Configs that ship with the package: one YAML file each, whose first line says what it trains."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path


def shipped() -> list[Path]:
    """The files of all recipes, by name."""
    return sorted(Path(str(resources.files("onpath.recipes"))).glob("*.yaml"), key=lambda path: path.stem)


def path_of(name: str) -> Path:
    """The file of a recipe, or `name` itself where it is the path of a YAML file.

    >>> path_of("fourrooms-demo").name
    'fourrooms-demo.yaml'
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return Path(name)
    names = {file.stem: file for file in shipped()}
    if name not in names:
        near = difflib.get_close_matches(name.lower(), names, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; onpath recipes says what they train"
        if Path(name).is_file():
            hint = "; a file of yours must end in .yaml, so rename it"
        elif Path(name).is_dir():
            hint = "; this is a folder: name its .yaml file, or go on with a run by --run FOLDER --resume"
        raise ValueError(f"recipe: {name!r} is not known; allowed are {', '.join(names)}, or a .yaml file{hint}")
    return names[name]


def summary(path: Path) -> str:
    """The first line of a recipe's file: what it trains."""
    return path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
