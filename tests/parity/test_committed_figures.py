"""The committed figures are a part of the full set, and what they leave out is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.committed_figures import missing_figure, unpack

DATA = Path(__file__).parent / "data"
PEERS = ("mdlm", "sedd", "sedd_uniform", "bd3lm", "gidd", "duo")
MOST_BYTES = 4_000_000


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("committed")) / "golden"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_committed_figures_are_small() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) <= MOST_BYTES


@pytest.mark.slow
def test_committed_figures_equal_full_set(committed: Path, full_set: Path) -> None:
    for name in sorted(files(committed)):
        ours, theirs = committed / name, full_set / "golden" / name
        if ours.suffix != ".npz":
            assert ours.read_bytes() == theirs.read_bytes(), name
            continue
        with np.load(ours) as part, np.load(theirs) as full:
            for array in part.files:
                assert part[array].dtype == full[array].dtype
                np.testing.assert_array_equal(part[array], full[array], err_msg=f"{name}: {array}")


def test_the_list_of_what_is_left_out_is_complete(committed: Path, full_set: Path) -> None:
    left_out = json.loads((DATA / "left_out.json").read_text())
    full = {name for name in files(full_set / "golden") if not name.startswith("modern/")}
    assert full - files(committed) == set(left_out["files"])
    for name in sorted(name for name in files(committed) if name.endswith(".npz")):
        with np.load(committed / name) as part, np.load(full_set / "golden" / name) as whole:
            assert set(whole.files) - set(part.files) == set(left_out["arrays"].get(name, []))


@pytest.mark.parametrize(
    "name",
    ["epsilon", "gamma", *(f"peers/{peer}" for peer in PEERS)],
)
def test_committed_figures_have_weights_inputs_and_outputs(committed: Path, name: str) -> None:
    assert (committed / name / "model.safetensors").is_file()
    with np.load(committed / name / "io.npz") as arrays:
        assert any(array.startswith(("logits", "log_score")) for array in arrays.files)
        assert {"input_ids", "xt"} & set(arrays.files)


def test_missing_figure_recognises_left_out_figures_only() -> None:
    assert missing_figure(KeyError("logits__causal is not a file in the archive")) == "logits__causal"
    assert missing_figure(FileNotFoundError("no /x/golden/epsilon/grads.npz")) == "epsilon/grads.npz"
    assert missing_figure(KeyError("logits__none")) is None
    assert missing_figure(KeyError()) is None
    assert missing_figure(FileNotFoundError("no /x/golden/epsilon/io.npz")) is None
    assert missing_figure(ValueError("`gamma` must lie in [0, 1]; got 2.")) is None
