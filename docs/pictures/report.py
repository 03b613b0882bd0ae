"""Draws a report, light and dark: ``python docs/pictures/report.py REPORT.html OUT.png``; it needs Chromium.

Results and plans of a policy; of a text model, a text that has half unmasked; of images, samples in the fewest
steps beside held-out images, how two come about, and drift.
"""

from __future__ import annotations

import io
import sys
import tempfile
from base64 import b64decode
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "reports"))
from browser import Page, chromium

WIDTH = 1040
SHOW = """
const kind = ['texts', 'samples'].find(id => document.querySelector('#' + id)) ?? 'plans';
document.querySelector('[aria-label="To the beginning"]')?.click();
const forward = document.querySelector('[aria-label="One step forward"]');
for (let step = 0; step < (kind === 'texts' ? 38 : 8); step++) forward?.click();
const sheets = [...document.querySelectorAll('#samples .sheet')];
sheets.slice(2, -1).forEach(sheet => sheet.remove());
sheets.slice(-1).forEach(sheet => [...sheet.querySelectorAll('.row')].slice(2).forEach(row => row.remove()));
document.querySelector('.top').style.position = 'static';
"""
SECTIONS = {"texts": ("#texts", "#texts"), "samples": ("#samples", "#drift"), "plans": ("#results", "#plans")}


def part(page: Page, url: str, scheme: str) -> Image.Image:
    """The sections of results and plans, that of texts, or those of samples and drift."""
    page.prefer(prefers_color_scheme=scheme)
    page.size(WIDTH, 900)
    page.open(url)
    page.run(SHOW)
    first, last = SECTIONS[page.run("kind")]
    top = page.run(f"document.querySelector('{first}').getBoundingClientRect().top + scrollY")
    bottom = page.run(f"document.querySelector('{last}').getBoundingClientRect().bottom + scrollY")
    clip = {"x": 0, "y": top, "width": WIDTH, "height": bottom - top, "scale": 1}
    shot = page.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    return Image.open(io.BytesIO(b64decode(shot["data"]))).convert("RGB")


def main() -> None:
    url, out = f"file://{Path(sys.argv[1]).resolve()}", Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder)) as page:
        light, dark = (part(page, url, scheme) for scheme in ("light", "dark"))
    whole = Image.new("RGB", (2 * WIDTH, min(light.height, dark.height)))
    whole.paste(light, (0, 0))
    whole.paste(dark, (WIDTH, 0))
    small = whole.resize((whole.width * 3 // 4, whole.height * 3 // 4), Image.Resampling.LANCZOS)
    few = small.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
    few.save(out, optimize=True)


if __name__ == "__main__":
    main()
