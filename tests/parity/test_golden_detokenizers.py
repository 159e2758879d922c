"""Detokenizers equal the published ones, including their mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hdlm.data import NAMED
from hdlm.data.detokenizers import DETOKENIZERS, detokenizer_of


@pytest.mark.parametrize("name", DETOKENIZERS)
def test_detokenizers_equal_published(name: str, shared: Path) -> None:
    examples = json.loads((shared / "golden" / "detokenizers.json").read_text(encoding="utf-8"))
    assert set(examples) == set(DETOKENIZERS)
    assert len(examples[name]) == 30
    for example in examples[name]:
        assert DETOKENIZERS[name](example["input"]) == example["output"], example["input"]


def test_named_datasets_cover_every_detokenizer() -> None:
    mended = {name: detokenizer_of(name) for name in NAMED if detokenizer_of(name)}
    assert set(mended.values()) == set(DETOKENIZERS)
    assert detokenizer_of("text8") is None
