"""The commands and Python blocks of README.md and CONTRIBUTING.md work as written."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import tomllib
from pathlib import Path

import pytest

import hdlm
from hdlm.cli._registry import verbs
from tests.conftest import REPOSITORY

PAGES = ("README.md", "CONTRIBUTING.md")
GUIDES = ("docs/evaluation.md", "docs/sampling.md", "docs/study.md", "docs/trace.md")
"""Pages whose Python is run, too."""
SLOW = ("docs/evaluation.md",)
"""Pages whose Python takes long."""


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", (REPOSITORY / page).read_text(encoding="utf-8"), re.M | re.S
    )


def _python() -> list[object]:
    return [
        pytest.param(code, id=f"{Path(page).name}-{index}", marks=[pytest.mark.slow] if page in SLOW else [])
        for page in (*PAGES, *GUIDES)
        for index, code in enumerate(_blocks(page, "python"))
    ]


def _commands() -> list[str]:
    """Every command line of the pages, without comments and with continued lines joined."""
    blocks = [block.replace("\\\n", " ") for page in PAGES for block in _blocks(page, "bash")]
    lines = [shlex.join(shlex.split(line, comments=True)) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("code", _python())
def test_readme_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = tmp_path / "example.py"
    example.write_text(code, encoding="utf-8")
    runpy.run_path(str(example), run_name="example")


@pytest.mark.parametrize("command", _commands())
def test_readme_commands_parse(command: str) -> None:
    program, *words = shlex.split(command)
    match program:
        case "hdlm":
            parser = argparse.ArgumentParser(exit_on_error=False)
            verbs()[words[0]].load().add_arguments(parser)
            parser.parse_args(words[1:])
        case "make":
            makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
            targets = [word for word in words if "=" not in word]
            assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
        case "pip":
            wanted = {extra for group in re.findall(r"\[([\w,]+)\]", command) for extra in group.split(",")}
            project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            assert wanted <= set(project["optional-dependencies"])
        case "pre-commit":
            assert (REPOSITORY / ".pre-commit-config.yaml").is_file()
        case _:
            pytest.fail(f"{program} is a command that this test does not know how to check.")


def test_every_verb_is_in_the_readme() -> None:
    shown = {shlex.split(command)[1] for command in _commands() if command.startswith("hdlm ")}
    assert shown == set(verbs())


def test_links_of_pages_point_to_existing_files() -> None:
    pages = [*PAGES, *(str(page.relative_to(REPOSITORY)) for page in (REPOSITORY / "docs").glob("*.md"))]
    links = [
        REPOSITORY / page / ".." / target
        for page in pages
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", (REPOSITORY / page).read_text(encoding="utf-8"))
    ]
    assert links
    assert not [
        str(link) for link in links if not Path(str(link.parent)).resolve().joinpath(link.name).exists()
    ]


def test_compositions_use_public_names() -> None:
    table = (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("## Compositions")[2]
    names = set(re.findall(r"`([A-Z]\w+|autoregressive|flat)\b", table.partition("\n## ")[0]))
    assert names
    assert names <= set(hdlm.__all__)
