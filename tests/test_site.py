"""The documentation as it is built: every page in a real browser, every link inside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

import pytest

pytest.importorskip("mkdocs", reason="needs the docs group")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs the docs group")

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Say nothing of a browser that left before it had everything."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it with every warning an error."""
    site = tmp_path_factory.mktemp("site") / "qqbot_session"  # the path it will have
    # The colours of a terminal and a hint at another product would be warnings of their own.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(site)]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return site


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = Server(("127.0.0.1", 0), partial(Quiet, directory=str(site.parent)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/{site.name}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


def pages_of(site: Path) -> list[str]:
    pages = sorted(str(path.relative_to(site).parent) for path in site.rglob("index.html"))
    assert pages
    return ["" if page == "." else f"{page}/" for page in pages]


def test_every_page_opens_without_an_error_and_every_link_inside_leads_somewhere(
    site: Path, address: str, browser: Any
) -> None:
    errors: list[str] = []
    links: dict[str, str] = {}
    anchors: dict[str, set[str]] = {}
    context = browser.new_context()
    page = context.new_page()

    def note(message: Any) -> None:
        if message.type == "error" and "net::ERR_FAILED" not in message.text:  # what was aborted
            errors.append(f"{page.url}: {message.text} {message.location['url']}")

    page.on("console", note)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.route(lambda url: not url.startswith(address), lambda route: route.abort())
    for name in pages_of(site):
        there = urljoin(address, name)
        response = page.goto(there, wait_until="load")
        assert response is not None
        assert response.status == 200, name
        hrefs = page.eval_on_selector_all("a[href]", "all => all.map(a => a.href)")
        anchors[there] = set(page.eval_on_selector_all("[id]", "all => all.map(a => a.id)"))
        links |= {href: name for href in hrefs if href.startswith(address)}
    context.close()
    assert errors == []
    for href, name in links.items():
        target, anchor = urldefrag(unquote(href))
        assert target in anchors or (site / target.removeprefix(address)).is_file(), (name, href)
        if anchor and target in anchors:
            assert anchor in anchors[target] or anchor.startswith("__"), (name, href)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_no_page_is_wider_than_the_window_and_every_picture_is_there(
    site: Path, address: str, browser: Any, width: int, scheme: str
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme
    )  # fmt: skip
    page = context.new_page()
    page.route(lambda url: not url.startswith(address), lambda route: route.abort())
    shots = os.environ.get("SITE_SHOTS")  # a directory, for whoever wants to look
    for name in pages_of(site):
        page.goto(urljoin(address, name), wait_until="load")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        broken = page.eval_on_selector_all(
            "article img", "all => all.filter(i => !i.naturalWidth).map(i => i.src)"
        )
        assert broken == [], name
        if shots:
            file = f"{name.replace('/', '_') or 'index'}-{width}-{scheme}.png"
            page.screenshot(path=str(Path(shots) / file), full_page=True)
    context.close()


def test_both_languages_have_every_page_a_reader_needs(site: Path) -> None:
    english = {page for page in pages_of(site) if not page.startswith("zh/")}
    chinese = {page.removeprefix("zh/") for page in pages_of(site) if page.startswith("zh/")}
    assert english == chinese


def test_the_first_page_of_each_language_is_in_that_language(
    address: str, browser: Any
) -> None:  # fmt: skip
    page = browser.new_page()
    page.route(lambda url: not url.startswith(address), lambda route: route.abort())
    for name, language in (("", "en"), ("zh/", "zh")):
        page.goto(urljoin(address, name))
        assert page.get_attribute("html", "lang") == language
        assert ("机器人" in page.inner_text("article")) is (language == "zh")
    page.close()


def test_the_search_finds_a_chinese_word_in_the_middle_of_a_sentence(
    address: str, browser: Any
) -> None:  # fmt: skip
    page = browser.new_page()
    page.route(lambda url: not url.startswith(address), lambda route: route.abort())
    page.goto(urljoin(address, "zh/"))
    page.click("input.md-search__input")
    page.keyboard.insert_text("挂起")
    page.keyboard.press("Shift")  # the search looks when a key is let go
    found = "a.md-search-result__link[href*='storages/#lease']"
    page.wait_for_selector(found, state="attached")  # perhaps folded below its page's first hit
    page.close()
