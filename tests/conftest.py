"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN_DATA = Path(os.environ.get("HDLM_SHARED", REPOSITORY.parent / "shared"))
NO_GOLDEN_DATA = f"no golden data at {GOLDEN_DATA}: set HDLM_SHARED to the folder that holds `golden/`"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The top of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden data, outputs of the published implementation; skips where there is none."""
    if not (GOLDEN_DATA / "golden").is_dir():
        pytest.skip(NO_GOLDEN_DATA)
    return GOLDEN_DATA


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say aloud how many parity tests did not run, so that a green run is not mistaken for a full one."""
    reports = terminalreporter.getreports("skipped")
    lost = sum(NO_GOLDEN_DATA in str(report.longrepr) for report in reports)
    if lost:
        terminalreporter.write_sep("!", f"{lost} tests did not run: {NO_GOLDEN_DATA}", red=True, bold=True)
