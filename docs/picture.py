"""Draw a figure of a page as SVG, by a headless Chromium: `python docs/picture.py PAGE LABEL OUT.svg`."""

import html
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

SAVE = """<script>
const found = plots.find(plot => plot.getAttribute("aria-label") === LABEL);
const look = {showlegend: true, "legend.orientation": "h", "legend.y": -0.12, paper_bgcolor: "#fff", "margin.b": 60};
const size = {format: "svg", width: 640, height: 360};
ready.then(() => Plotly.relayout(found, look)).then(() => Plotly.toImage(found, size)).then(url => {
  document.body.textContent = decodeURIComponent(url.slice(url.indexOf(",") + 1));
});
</script>"""


def draw(page: Path, label: str) -> str:
    """The SVG of the figure with this label."""
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "page.html"
        copy.write_text(page.read_text("utf-8").replace("</body>", SAVE.replace("LABEL", repr(label)) + "</body>"))
        options = ["--headless", "--no-sandbox", "--virtual-time-budget=5000", "--dump-dom"]
        done = subprocess.run(["chromium", *options, copy.as_uri()], capture_output=True, text=True, check=True)
    body = re.search("<body[^>]*>(.*)</body>", done.stdout, re.DOTALL)
    if body is None or not (svg := html.unescape(body[1]).strip()).startswith("<svg"):
        raise SystemExit(f"{page}: found no figure '{label}'")
    return svg


if __name__ == "__main__":
    page, label, out = sys.argv[1:]
    Path(out).write_text(draw(Path(page), label), encoding="utf-8")
