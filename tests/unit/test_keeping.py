"""The checkpoint store of a run: which checkpoints it keeps, and its lock."""

from __future__ import annotations

import errno
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hdlm.training.checkpoints import store as keeping
from hdlm.training.checkpoints.store import CheckpointStore

HOLD = """
import sys, time
from pathlib import Path
from hdlm.training.checkpoints.store import CheckpointStore
with CheckpointStore(Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(60)
"""


def _store_with_steps(run: Path, *steps: int) -> CheckpointStore:
    shelf = CheckpointStore(run, keep=100)
    for step in steps:
        shelf.put(step, lambda folder: None)
    return CheckpointStore(run, keep=2)


@pytest.mark.parametrize(
    "note",
    [b"", b'{"step": 5', b"[]", b'{"step": 5}', b"\xff\xfe", b'{"step": 7, "bound": 0.5}', None],
    ids=["empty", "cut", "list", "no bound", "no text", "step is gone", "lost"],
)
def test_store_restores_best_step_after_damaged_note(tmp_path: Path, note: bytes | None) -> None:
    shelf = _store_with_steps(tmp_path, 5, 10, 15)
    assert shelf.offer(5, 2.0)
    file = tmp_path / "training" / "best.json"
    file.unlink() if note is None else file.write_bytes(note)
    shelf.mend({5: 2.0, 6: 1.0, 10: 3.0, 15: math.nan})
    assert shelf.best == (5, 2.0)
    shelf.put(20, lambda folder: None)
    assert shelf.steps() == [5, 15, 20]


def test_store_mend_keeps_valid_best_step(tmp_path: Path) -> None:
    shelf = _store_with_steps(tmp_path, 5, 10)
    shelf.mend({})
    assert shelf.best is None
    shelf.offer(10, 2.0)
    shelf.mend({5: 2.5, 10: 2.0})
    assert shelf.best == (10, 2.0)
    shelf.rewind(5)
    shelf.mend({5: 3.0, 10: 2.0})
    assert shelf.best == (5, 3.0)


def test_store_mend_records_better_step_without_note(tmp_path: Path) -> None:
    shelf = _store_with_steps(tmp_path, 5, 10)
    shelf.offer(5, 2.0)
    shelf.mend({5: 2.0, 10: 1.5})
    assert shelf.best == (10, 1.5)


@pytest.mark.parametrize("note", [b"", b"[]", b'{"step": Infinity}', b'{"bound": 5}', b"\xff"])
def test_store_finished_is_cleared_by_rewind_and_damaged_note(tmp_path: Path, note: bytes) -> None:
    shelf = _store_with_steps(tmp_path, 5, 10)
    assert shelf.finished is None
    shelf.finish(10)
    assert shelf.finished == 10
    shelf.rewind(5)
    assert shelf.finished is None
    (tmp_path / "training" / "finished.json").write_bytes(note)
    assert shelf.finished is None


def test_store_lock_excludes_second_process_and_ends_with_it(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        match = r"another program trains in .*resume the run with --resume"
        with pytest.raises(ValueError, match=match), CheckpointStore(tmp_path).held():
            pytest.fail("two programs write")
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    with CheckpointStore(tmp_path).held():
        pass
    with CheckpointStore(tmp_path).held():
        pass


@pytest.mark.parametrize("error", [SystemExit(143), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_interrupted_put_keeps_earlier_checkpoints(tmp_path: Path, error: BaseException) -> None:
    shelf = _store_with_steps(tmp_path, 5, 10)

    def write(folder: Path) -> None:
        (folder / "half").touch()
        raise error

    with pytest.raises(type(error)):
        shelf.put(15, write)
    assert sorted(path.name for path in (tmp_path / "training").iterdir()) == [
        "step-00000005",
        "step-00000010",
    ]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="nothing here says what a handle is of")
def test_put_syncs_files_before_removing_old_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, synced = _store_with_steps(tmp_path, 5, 10), []

    def sync(handle: int) -> None:
        synced.append((Path(f"/proc/self/fd/{handle}").readlink().name, shelf.steps()))

    monkeypatch.setattr(keeping.os, "fsync", sync)
    shelf.put(15, lambda folder: (folder / "weights").touch())
    assert synced == [("weights", [5, 10]), (".step-15", [5, 10]), ("training", [5, 10, 15])]
    assert shelf.steps() == [10, 15]


def test_failed_sync_raises_and_keeps_old_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = _store_with_steps(tmp_path, 5, 10)

    def refuse(handle: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(keeping.os, "fsync", refuse)
    with pytest.raises(OSError, match="broken"):
        shelf.put(15, lambda folder: None)
    assert shelf.steps() == [5, 10]
