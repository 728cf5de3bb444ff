"""What MkDocs and its plugins do not do by themselves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent


def on_files(files: Files, *, config: Any) -> Files:
    """Show the plot of the newest measurement."""
    plot = str(ROOT / "benchmarks" / "growth.svg")
    files.append(File.generated(config, "assets/growth.svg", abs_src_path=plot))
    return files


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
