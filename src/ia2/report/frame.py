"""The frame of a page, and a table in it. A page asks the network for nothing."""

import gzip
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path

from plotly.offline import get_plotlyjs

from ia2.files import write_text
from ia2.report.figures import display_name, look

HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
"""
TOGGLES = """<nav aria-label="What is shown"></nav>
<noscript><p>Figures need JavaScript; tables do not.</p></noscript>"""


def write_page(path: Path, title: str, setting: str, sections: Mapping[str, str]) -> None:
    """Write a page of a title and a line below it, which are text, and of sections, HTML by heading; empty ones not."""
    body = "\n".join(f"<section>\n<h2>{name}</h2>\n{html}\n</section>" for name, html in sections.items() if html)
    header = f"<header>\n<h1>{escape(title)}</h1>\n<p>{escape(setting)}</p>\n</header>\n{TOGGLES}"
    style, script = (files("ia2.report").joinpath(name).read_text("utf-8") for name in ("style.css", "script.js"))
    head = f"{HEAD}<title>{escape(title)}</title>\n<style>\n{style}</style>\n"
    plotly = f'<script type="text/plain" id="plotly">{_packed_plotly()}</script>'
    page = f"<body>\n<main>\n{header}\n{body}\n</main>\n{plotly}\n<script>\n{script}</script>\n</body>\n</html>\n"
    write_text(path, f"{head}</head>\n{page}")


@cache
def _packed_plotly() -> str:
    """plotly.js, gzipped, in base64: less than half of its 4.8 MB."""
    return b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def table(caption: str, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Of HTML cells; the first of a row is its header."""
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    body = "\n".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table><caption><span>{caption}</span></caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def name_of(method: str) -> str:
    """The name of a method for people, as HTML."""
    return escape(display_name(method))


def dotted(method: str) -> str:
    """The same behind the method's dot."""
    return f"{look(method).dot}{name_of(method)}"
