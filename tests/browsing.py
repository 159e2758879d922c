"""Chromium for tests of pages. A module that imports this file is skipped, loudly, where something is missing.

Needs Chromium (`CHROMIUM` names another one than /usr/bin/chromium) and the extra `browser`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NO_BROWSER

playwright = pytest.importorskip("playwright.sync_api", reason=NO_BROWSER)
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=NO_BROWSER)
CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
NEEDS_CHROMIUM = pytest.mark.skipif(not CHROMIUM.is_file(), reason=NO_BROWSER)
expect = playwright.expect


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without windows."""
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def wait_until(tab: Any, condition: str) -> None:
    """Wait for an expression; the policy of the page forbids Playwright to do so inside it."""
    end = time.monotonic() + 30
    while not tab.evaluate(condition):
        assert time.monotonic() < end, condition
        tab.wait_for_timeout(20)


def check_accessibility(tab: Any) -> None:
    """Assert that axe finds no violation; the page must have been opened with `bypass_csp`."""
    found = axe.Axe().run(tab)
    assert not found.response["violations"], found.generate_report()
