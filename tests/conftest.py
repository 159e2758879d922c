"""Fixtures for all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from tests import shape_checks
from tests.committed_figures import missing_figure, unpack

shape_checks.install()
gc.set_threshold(50_000)  # a collection of garbage takes a second with all test modules in memory

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN_DATA = Path(os.environ.get("HDLM_SHARED", REPOSITORY.parent / "shared"))
NO_CUDA = "no CUDA here, so CUDA graphs were replayed by a stand-in only"
NO_BROWSER = "no Chromium or no Playwright here: `apt-get install chromium` and `pip install -e '.[browser]'`"
NO_RAY = "no Ray here: `pip install -e '.[ray]'`"
HAS_FULL_SET = (GOLDEN_DATA / "golden").is_dir()
NOT_COMMITTED = "only the committed part of the golden figures is here: set HDLM_SHARED to the full set"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The top of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of golden data, outputs of the published implementations: the full set or the committed part."""
    return GOLDEN_DATA if HAS_FULL_SET else unpack(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="session")
def full_set() -> Path:
    """The folder of the full set of golden data; skips where there is none."""
    if not HAS_FULL_SET:
        pytest.skip(NOT_COMMITTED)
    return GOLDEN_DATA


def _skip_what_is_not_committed() -> Generator[None, None, None]:
    try:
        yield
    except (KeyError, FileNotFoundError, ValueError) as error:
        name = None if HAS_FULL_SET else missing_figure(error)
        if name is None:
            raise
        pytest.skip(f"{NOT_COMMITTED} ({name} is missing)")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out a file of slow tests that takes several seconds to collect."""
    return (
        True
        if collection_path.name == "test_serve_fuzz.py" and config.option.markexpr == "not slow"
        else None
    )


def pytest_collection_finish() -> None:
    """Exempt the modules of all tests from garbage collection."""
    gc.freeze()


def pytest_runtest_logstart() -> None:
    """Check the shapes of the first calls in the test that starts."""
    shape_checks.begin_test()


pytest_runtest_setup = pytest.hookimpl(wrapper=True)(_skip_what_is_not_committed)
pytest_runtest_call = pytest.hookimpl(wrapper=True)(_skip_what_is_not_committed)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report how many tests did not run because data or devices are missing."""
    reports = terminalreporter.getreports("skipped")
    for reason in (NOT_COMMITTED, NO_CUDA, NO_BROWSER, NO_RAY):
        lost = sum(reason in str(report.longrepr) for report in reports)
        if lost:
            terminalreporter.write_sep("!", f"{lost} tests did not run: {reason}", red=True, bold=True)
