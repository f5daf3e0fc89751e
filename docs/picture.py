"""Figures of a page as SVG, by a headless Chromium: `python docs/picture.py PAGE LABEL OUT.svg [LABEL OUT.svg ...]`."""

import html
import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

SAVE = """<script>
const look = {showlegend: true, "legend.orientation": "h", "legend.y": -0.12, paper_bgcolor: "#fff", "margin.b": 60};
const size = {format: "svg", width: 640, height: 360};
async function draw(label) {
  const found = plots.find(plot => plot.getAttribute("aria-label") === label);
  if (!found) return null;
  await Plotly.relayout(found, look);
  const url = await Plotly.toImage(found, size);
  return decodeURIComponent(url.slice(url.indexOf(",") + 1));
}
ready.then(() => Promise.all(LABELS.map(draw))).then(svgs => { document.body.textContent = JSON.stringify(svgs); });
</script>"""


def draw(page: Path, labels: list[str]) -> list[str]:
    """The SVG of each figure with one of these labels."""
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "page.html"
        save = SAVE.replace("LABELS", json.dumps(labels))
        copy.write_text(page.read_text("utf-8").replace("</body>", save + "</body>"), encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--virtual-time-budget=20000", "--dump-dom"]
        done = subprocess.run(["chromium", *options, copy.as_uri()], capture_output=True, text=True, check=True)
    body = re.search("<body[^>]*>(.*)</body>", done.stdout, re.DOTALL)
    svgs = json.loads(html.unescape(body[1])) if body and body[1].startswith("[") else [None]
    if missing := [label for label, svg in zip(labels, svgs, strict=False) if svg is None]:
        raise SystemExit(f"{page}: found no figure '{missing[0]}'")
    return svgs


if __name__ == "__main__":
    page, *rest = sys.argv[1:]
    for out, svg in zip(rest[1::2], draw(Path(page), rest[::2]), strict=True):
        Path(out).write_text(svg, encoding="utf-8")
