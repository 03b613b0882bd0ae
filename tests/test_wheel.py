"""What a user installs is the wheel, so the wheel is looked at too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_wheel_holds_the_package_and_its_recipes(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("onpath-*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, timeout=300)
    source = ROOT / "src" / "onpath"
    kept = {
        path.relative_to(source)
        for path in source.rglob("*")
        if path.suffix in {".py", ".yaml", ".typed", ".html", ".css", ".js", ".safetensors", ".npz", ".gz"}
    }
    installed = site / "onpath"
    assert kept <= {path.relative_to(installed) for path in installed.rglob("*")}
    code = "import onpath, sys; sys.stdout.write(onpath.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert Path(found.stdout).parent == installed
