"""Every release of the frameworks of two years: what was found, and that it is still so."""

from __future__ import annotations

import framework_versions
import frameworks
import pytest
from framework_versions import BEGIN, END, NAMES, PAGES, Found

KEPT = framework_versions.load()


def test_every_release_was_run() -> None:
    assert list(KEPT) == NAMES


@pytest.mark.parametrize("language", PAGES)
def test_the_pages_show_what_was_found(language: str) -> None:
    page = (frameworks.ROOT / "docs" / PAGES[language]).read_text("utf-8")
    shown = page.partition(BEGIN)[2].partition(END)[0].strip()
    assert shown == framework_versions.table(language, KEPT)


@pytest.mark.parametrize("found", [pytest.param(found, id=name) for name, found in KEPT.items()])
def test_no_release_loses_events_with_us_or_it_says_why_not(found: Found) -> None:
    if found.sentence:
        assert "does not know this version" in found.sentence or "SyntaxError" in found.sentence
    else:
        assert found.killed is not None
        assert found.terminated is not None
        assert (found.killed[0], found.killed[2]) == (0, 1)
        assert found.terminated == (0, 0, 1)
        assert found.alone is None or found.alone > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_release_still_does_what_it_did(name: str) -> None:
    try:
        found = framework_versions.find(name)
    except LookupError as error:
        pytest.skip(str(error))
    kept = KEPT[name]
    assert found.sentence == kept.sentence
    if found.killed is not None and kept.killed is not None:
        assert (found.killed[0], found.killed[2]) == (kept.killed[0], kept.killed[2])
        assert found.terminated == kept.terminated
