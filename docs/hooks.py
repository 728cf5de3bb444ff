"""What MkDocs and its plugins do not do by themselves."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent


def on_files(files: Files, *, config: Any) -> Files:
    """Show the plots of the newest measurement."""
    for plot in (ROOT / "benchmarks").glob("*.svg"):
        files.append(File.generated(config, f"assets/{plot.name}", abs_src_path=str(plot)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Turn the names that a page of the reference lists into their docstrings."""
    if not page.file.src_uri.startswith("reference/"):
        return markdown
    return re.sub(r"^\* `(qqbot_session[\w.]*)`$", r"::: \1\n", markdown, flags=re.MULTILINE)


@event_priority(-200)  # after the plugin that sets them
def on_page_context(context: Any, *, page: Any, config: Any, nav: Any) -> Any:
    """Link the language selector to each language's first page.

    The theme's script asks for a sitemap there, and leads the reader on to the page's twin.
    """
    root = urlsplit(config.site_url).path
    for language in config.extra.alternate:
        language["link"] = root if language["lang"] == "en" else f"{root}{language['lang']}/"
    return context


def on_post_build(config: Any) -> None:
    """Give each language the sitemap that the script asks for."""
    site = Path(config.site_dir)
    for language in site.glob("??/"):
        shutil.copy(site / "sitemap.xml", language)
