"""Draws a report, light and dark: ``python docs/pictures/report.py REPORT.html OUT.png``; it needs Chromium.

Results and plans of a policy; of a text model, a text that has half unmasked.
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
document.querySelector('[aria-label="To the beginning"]').click();
const isText = document.querySelector('#texts') !== null;
const forward = document.querySelector('[aria-label="One step forward"]');
for (let step = 0; step < (isText ? 38 : 8); step++) forward.click();
document.querySelector('.top').style.position = 'static';
"""


def part(page: Page, url: str, scheme: str) -> Image.Image:
    """The sections of results and plans, or that of texts."""
    page.prefer(prefers_color_scheme=scheme)
    page.size(WIDTH, 900)
    page.open(url)
    page.run(SHOW)
    first, last = ("#texts", "#texts") if page.run("isText") else ("#results", "#plans")
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
    whole.resize((whole.width * 3 // 4, whole.height * 3 // 4), Image.Resampling.LANCZOS).save(out, optimize=True)


if __name__ == "__main__":
    main()
