"""For mkdocs: README.md and CONTRIBUTING.md are pages of the site too, and links out of docs/ become plain text."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are from docs/: what is in docs/ stays a link, what is elsewhere in the repository does not."""
    folder = ROOT if page.file.src_uri in PAGES else ROOT / "docs"

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        path = (folder / target).resolve()
        if not path.exists():
            return match[0]  # for mkdocs to complain of
        if path.is_relative_to(ROOT / "docs"):
            return f"[{text}]({path.relative_to(ROOT / 'docs')}{anchor})"
        return text

    return re.sub(r"\[([^\]]+)\]\((?!https?:)([^)#]+)(#[^)]*|)\)", link, markdown)
