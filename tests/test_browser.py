"""Pages as a reader has them, in a headless Chromium: one for each of two readers, as to open a page takes seconds."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, Page, Request, sync_playwright
from test_grids import write_results as table_of_a_sweep
from test_report import HOSTILE, NAMES, cells_of, difference, interval, metrics_of, rows_of, write_run
from test_sweep_page import NAMES as SWEPT
from test_sweep_page import pair
from test_sweep_page import rows as rows_of_a_sweep

from ia2.analysis import analyze_sweep
from ia2.report import display_name, write_report, write_sweep_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = Path(axe_playwright_python.__file__).parent / "axe.min.js"
TIMEOUT = 60_000  # ms
SHOWN = "() => plots.map(plot => plot.data.filter(trace => trace.visible !== false).map(trace => trace.name))"
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no Chromium here: 'apt-get install chromium' to run these"
)


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Reader:
    """A page that is open, and what was asked for and said on it; it may be slow."""

    def __init__(self, browser: Browser, url: str, **look: Any) -> None:
        self.page: Page = browser.new_page(**look)
        self.page.set_default_timeout(TIMEOUT)
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page.on("request", self._note)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.page.goto(url)

    def _note(self, request: Request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:")):
            self.asked.append(request.url)

    def until(self, condition: str) -> None:
        """Wait for it: `wait_for_function` would need `eval`, which pages forbid themselves."""
        frames = f"for (let n = 0; n < 3600 && !({condition}); n++) await new Promise(requestAnimationFrame);"
        assert self.page.evaluate(f"async () => {{ {frames} return {condition}; }}")

    def violations(self) -> list[tuple[str, list[str]]]:
        """Of the rules of axe, the best practices among them."""
        self.page.evaluate(AXE.read_text("utf-8"))
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        return [(of["id"], [node["html"][:100] for node in of["nodes"]][:3]) for of in found]


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """Of a comparison in which every text is hostile."""
    write_run(tmp_path / "cells" / "a" / "ia2-sft")
    metrics = metrics_of(cells=[{**cell, "context": HOSTILE} for cell in cells_of()], title=HOSTILE)
    for seconds, name in enumerate(NAMES[2:], 1):
        metrics["methods"][name]["training_seconds"] = seconds
    metrics["differences"] = {f"ia2-sft - {name}": difference(interval(0.1), interval(-0.1)) for name in ("sft", "icl")}
    rows = rows_of(task="mood", seed=0)
    for row in rows:
        row |= {"query": f"{HOSTILE} {row['query']}", "response": HOSTILE, "p_labels": {HOSTILE: 0.9, "good": 0.1}}
    write_report(tmp_path / "report.html", metrics, rows)
    return tmp_path / "report.html"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of a run, and of a sweep that is analysed; those of `ia2 analyze` and `ia2 explore` have tests beside theirs."""
    run, swept = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("sweep")
    write_run(run)
    names = ("zero-shot", "icl", "ia2", "ia2-sft")
    of_run = metrics_of(names, context="Text:glad cow\nLabel:1\n\n" * 200)
    of_run["differences"] = {"ia2-sft - icl": difference(interval(0.1), interval(-0.1))}
    write_report(run / "report.html", of_run, rows_of(names))
    table_of_a_sweep(swept, sizes=(4, 8, 16))
    analyze_sweep(swept)
    pairs = [pair(0.01, method="ia2-sft"), pair(0.5, n=8)]
    samples = [(n, rows_of(SWEPT, 20 + n, task="mood", seed=3)) for n in (8, 4)]
    write_sweep_report(swept / "report.html", rows_of_a_sweep(), pairs, [], samples, {"a": "b"}, 12)
    return {"run": run / "report.html", "sweep": swept / "report.html", "its analysis": swept / "analysis.html"}


def figures_are_drawn_without_errors_or_network(reader: Reader) -> None:
    n_drawn = reader.page.evaluate("plots.filter(plot => plot.querySelector('.main-svg')).length")
    assert n_drawn == reader.page.evaluate("plots.length") > 0
    assert (reader.asked, reader.said) == ([], [])


def axe_finds_nothing(reader: Reader) -> None:
    reader.page.locator("details").evaluate_all("all => all.forEach(part => part.open = true)")
    reader.page.locator("button.data").first.click()
    assert reader.violations() == []


def hostile_text_stays_text(reader: Reader) -> None:
    assert reader.page.locator("h1").inner_text() == HOSTILE
    assert reader.page.locator("q").first.inner_text().startswith(HOSTILE)
    assert reader.page.evaluate("[...document.scripts].filter(script => script.text.startsWith('alert')).length") == 0


def nothing_is_wider_than_the_window(reader: Reader) -> None:
    assert reader.page.evaluate("document.documentElement.scrollWidth") == 380


def figures_follow_the_theme(reader: Reader) -> None:
    dark = reader.page.evaluate("css('--text')")
    assert reader.page.evaluate("plots.every(plot => plot.layout.font.color === css('--text'))")
    reader.page.emulate_media(color_scheme="light")
    assert reader.page.evaluate("css('--text')") != dark
    reader.until("plots.every(plot => plot.layout.font.color === css('--text'))")


def a_method_is_hidden_and_shown_in_all_of_the_page(reader: Reader) -> None:
    page, name = reader.page, display_name("soft")
    before = page.evaluate(SHOWN)
    seen = page.locator(f"[data-method='{name}'] >> visible=true")
    assert sum(name in names for names in before) >= 5
    assert seen.count() == 4  # the methods, reliability, cost, and a column of the rows
    button = page.get_by_role("button", name=name, exact=True)
    button.focus()
    page.keyboard.press("Enter")
    reader.until(f"!({SHOWN})().flat().includes('{name}')")
    assert (seen.count(), button.get_attribute("aria-pressed")) == (0, "false")
    assert page.evaluate(SHOWN) == [[of for of in names if of != name] for names in before]
    button.click()
    reader.until(f"JSON.stringify(({SHOWN})()) === JSON.stringify({json.dumps(before)})")
    assert button.get_attribute("aria-pressed") == "true"


def rows_are_searched(reader: Reader) -> None:
    rows = reader.page.locator(".searched tbody tr >> visible=true")
    field, said, n = reader.page.get_by_role("searchbox"), reader.page.locator("output"), rows.count()
    field.fill("42 QUERY")
    assert [text.count("query 42") for text in rows.all_inner_texts()] == [1]
    assert said.inner_text() == f"1 of {n} rows"
    field.fill("nothing like it")
    assert rows.count() == 0
    field.fill("")
    assert (rows.count(), said.inner_text()) == (n, "")


def a_figure_is_there_as_numbers_and_as_svg(reader: Reader) -> None:
    figure = reader.page.locator("figure", has=reader.page.get_by_label("Share of wrong answers")).first
    numbers = figure.locator("button.data")
    numbers.click()
    data = "document.querySelector('[aria-label^=Share]').data.map(trace => trace.x.length)"
    assert figure.locator("tbody tr").count() == sum(reader.page.evaluate(data)) > 0
    assert numbers.get_attribute("aria-expanded") == "true"
    with reader.page.expect_download() as download:
        figure.locator("button.svg").click()
    svg = ElementTree.parse(download.value.path()).getroot()
    text = "".join(svg.itertext())
    assert all(display_name(name) in text for name in NAMES)
    assert "Share of wrong answers among the surest" in text
    assert not [of for of in svg.iter() if of.tag.endswith(("image", "foreignObject", "style"))]


def it_is_printed_whole(reader: Reader) -> None:
    closed = reader.page.locator("details:not([open])")
    reader.page.locator("details").first.evaluate("part => part.open = false")
    reader.page.pdf()
    assert closed.count() == 0


EVERYWHERE = (figures_are_drawn_without_errors_or_network, axe_finds_nothing)
READERS: dict[str, tuple[dict[str, Any], tuple[Callable[[Reader], None], ...]]] = {
    "desk": (
        {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
        (
            *EVERYWHERE,
            hostile_text_stays_text,
            a_method_is_hidden_and_shown_in_all_of_the_page,
            rows_are_searched,
            a_figure_is_there_as_numbers_and_as_svg,
            it_is_printed_whole,
        ),
    ),
    "phone": (
        {"viewport": {"width": 380, "height": 800}, "color_scheme": "dark", "has_touch": True, "is_mobile": True},
        (*EVERYWHERE, nothing_is_wider_than_the_window, figures_follow_the_theme),
    ),
}


@needs_chromium
@pytest.mark.parametrize("name", list(READERS))
def test_a_report(name: str, report: Path, subtests: pytest.Subtests) -> None:
    look, checks = READERS[name]
    with chromium() as browser:
        reader = opened(browser, report, look)
        for check in checks:
            with subtests.test(check.__name__):
                check(reader)


def opened(browser: Browser, path: Path, look: dict[str, Any]) -> Reader:
    """With all figures drawn."""
    reader = Reader(browser, path.as_uri(), **look)
    reader.page.evaluate("() => ready")
    return reader


def anybody_can_read(path: Path) -> None:
    """A page at a desk and on a phone."""
    with chromium() as browser:
        for look, _ in READERS.values():
            reader = opened(browser, path, look)
            figures_are_drawn_without_errors_or_network(reader)
            axe_finds_nothing(reader)
            assert reader.page.evaluate("document.documentElement.scrollWidth") == look["viewport"]["width"]


@needs_chromium
@pytest.mark.parametrize("name", ["run", "sweep", "its analysis"])
def test_anybody_can_read_a_page(name: str, pages: dict[str, Path]) -> None:
    anybody_can_read(pages[name])


@needs_chromium
def test_of_a_sweep_one_n_can_be_chosen_by_keys(pages: dict[str, Path]) -> None:
    with chromium() as browser:
        reader = opened(browser, pages["sweep"], READERS["desk"][0])
        page = reader.page
        rows, parts = page.locator("tbody tr:has([data-n]) >> visible=true"), page.locator("h3 >> visible=true")
        choice = page.get_by_role("combobox", name="N", exact=True)
        before, widths = (
            rows.all_inner_texts(),
            "plots.map(plot => plot.offsetParent && plot.clientWidth - plot._fullLayout.width)",
        )
        shown = "() => plots.filter(plot => plot.layout.meta).map(plot => plot.layout.xaxis.range.map(x => 10 ** x))"
        assert {n for text in before for n in (4, 8) if f"N = {n}" in text} == {4, 8}
        assert parts.all_inner_texts() == ["N = 8"] * 3
        for n in (4, 8):
            choice.press("ArrowDown")
            reader.until(f"({shown})().every(([low, high]) => {n} / 2 < low && high < 2 * {n})")
            assert rows.all_inner_texts() == [text for text in before if f"N = {n}" in text]
            assert parts.all_inner_texts() == [f"N = {n}"] * (2 if n == 4 else 3)
            reader.until(f"({widths}).every(width => Math.abs(width) < 1)")
        choice.press("Home")
        reader.until(f"({shown})().every(([low, high]) => low < 4 && 8 < high)")
        assert (rows.all_inner_texts(), parts.all_inner_texts()) == (before, ["N = 8"] * 3)


@needs_chromium
def test_tables_are_read_without_javascript_and_axe_would_find_something(report: Path) -> None:
    with chromium() as browser:
        reader = Reader(browser, report.as_uri(), java_script_enabled=False)
        assert reader.page.locator("table >> visible=true").count() > 4
        assert reader.page.locator("noscript p").bounding_box()
        other = Reader(browser, "data:text/html,<input>")
        assert {name for name, _ in other.violations()} >= {"label", "document-title"}
