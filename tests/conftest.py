"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN_DATA = Path(os.environ.get("HDLM_SHARED", REPOSITORY.parent / "shared"))
NO_CUDA = "no CUDA here, so CUDA graphs were replayed by a stand-in only"
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
    """Say aloud how many tests did not run for want of data or devices: a green run is no full one."""
    reports = terminalreporter.getreports("skipped")
    for reason in (NO_GOLDEN_DATA, NO_CUDA):
        lost = sum(reason in str(report.longrepr) for report in reports)
        if lost:
            terminalreporter.write_sep("!", f"{lost} tests did not run: {reason}", red=True, bold=True)
