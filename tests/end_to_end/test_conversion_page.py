"""docs/conversion.md runs from its first block to its last, in an empty folder."""

from __future__ import annotations

import argparse
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from hdlm.cli._registry import verbs
from hdlm.training.recipe import LoraSettings, MixturePart
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "conversion.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


@pytest.mark.slow
def test_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a few steps in the place of minutes."""
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    code = re.sub(r"minutes=\d+", "steps=4", "\n".join(_blocks("python")))
    exec(compile(code, "docs/conversion.md", "exec"), {"__name__": "page"})
    printed = capsys.readouterr().out
    assert "'to': 'diffusion'" in printed
    assert printed.splitlines()[-1] == "True"


def test_commands_of_page_parse() -> None:
    for line in _blocks("bash")[0].splitlines():
        program, verb, *words = shlex.split(line, comments=True)
        assert program == "hdlm"
        parser = argparse.ArgumentParser(exit_on_error=False)
        verbs()[verb].load().add_arguments(parser)
        parser.parse_args(words)


def test_tables_of_page_are_those_of_recipes() -> None:
    block, lora = _blocks("toml")
    assert LoraSettings(**tomllib.loads(lora)["lora"]).rank == 8
    parts = [MixturePart(**part) for part in tomllib.loads(block)["mixture"]]
    assert [part.begins for part in parts] == [0.5, 0.0]
