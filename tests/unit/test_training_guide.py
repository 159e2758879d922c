"""docs/training.md: its tables are those of the recipe classes, and its commands are commands.

Run as a program, it writes the tables: `python tests/unit/test_training_guide.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from hdlm import hyperschedule as hyperschedules
from hdlm.cli._options import documented
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.package_data import configs
from hdlm.parameterization import LeaveOneOut, Shifted
from hdlm.process import GIDD
from hdlm.published.config import Config
from hdlm.published.hydra_cli import compose, parse_command_line
from hdlm.strict_config import key_of
from hdlm.training import Recipe
from hdlm.training.recipe import _PIECES

GUIDE = Path(__file__).parents[2] / "docs" / "training.md"
MARK = "<!-- The tables below"


def _settings() -> dict[str, Any]:
    """The class of each table of a recipe."""
    hints = get_type_hints(Recipe)
    kinds = {name: next(iter(get_args(hint)), hint) for name, hint in hints.items()}
    return {name: kind for name, kind in kinds.items() if dataclasses.is_dataclass(kind)}


def _rows(settings: Any) -> dict[str, tuple[str, str]]:
    """Default and meaning of each option, the latter out of the docstring."""
    meanings = documented(inspect.cleandoc(settings.__doc__))
    rows = {}
    for option in dataclasses.fields(settings):
        default = option.default
        if option.default_factory is not dataclasses.MISSING:
            default = option.default_factory()
        shown = "required" if default is dataclasses.MISSING else f"`{default!r}`"
        rows[key_of(option)] = (shown, meanings.get(option.name, ""))
    return rows


def _tables() -> str:
    lines = []
    for name, settings in _settings().items():
        title = f"[[{name}]]" if name == "mixture" else f"[{name}]"
        lines += [f"### `{title}`", "", "| option | default | meaning |", "|---|---|---|"]
        rows = _rows(settings).items()
        lines += [f"| `{option}` | {default} | {meaning} |" for option, (default, meaning) in rows]
        lines.append("")
    return "\n".join(lines)


def _commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line]


@pytest.mark.parametrize("name", _settings())
def test_guide_tables_match_recipe_classes(name: str) -> None:
    parts = GUIDE.read_text(encoding="utf-8").split("\n### ")
    (section,) = (part for part in parts if part.startswith((f"`[{name}]`", f"`[[{name}]]`")))
    written = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section, flags=re.M))
    expected = _rows(_settings()[name])
    assert written == {option: default for option, (default, _) in expected.items()}, (
        "`python tests/unit/test_training_guide.py` writes them"
    )
    undocumented = [option for option, (_, meaning) in expected.items() if not meaning]
    assert not undocumented


def test_guide_piece_table_names_every_class() -> None:
    table = (
        GUIDE.read_text(encoding="utf-8").partition("## The pieces of a recipe")[2].partition("```toml")[0]
    )
    listed = dict(re.findall(r"^\| `(?:\[(?=\w))?(\w+)\]?` \| (.*?) \|", table, flags=re.M))
    for name, (package, kind) in (
        _PIECES | {"hyperschedule": (hyperschedules, AbstractHyperschedule)}
    ).items():
        offered = [getattr(package, one) for one in package.__all__]
        classes = {one.__name__ for one in offered if isinstance(one, type) and issubclass(one, kind)}
        concrete = {one for one in classes if not one.startswith("Abstract")}
        assert set(re.findall(r"`(\w+)`", listed[name])) == concrete


def test_guide_recipe_builds_pieces() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.S)
    table = tomllib.loads(block) | {"data": {"context": 4}, "run": {"steps": 1}}
    recipe = Recipe.from_table(table)
    assert recipe.build_process(7) == GIDD(7, 0.1)
    assert recipe.build_parameterization() == Shifted(LeaveOneOut("fraction"))


def test_guide_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks, one after the other, with two steps in the place of minutes and a small network."""
    monkeypatch.chdir(tmp_path)
    Path("novels").mkdir()
    for name in ("one", "two"):
        Path("novels", f"{name}.txt").write_text(
            f"{name} cat sat on the mat and the dog sat on the log . " * 400
        )
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.S)
    assert len(blocks) == 3
    code = re.sub(r"minutes=\d+", "steps=2", "\n".join(blocks))
    code = code.replace('output="runs/python", steps=2', 'output="runs/python", steps=2, network=SMALL')
    exec(compile(code, str(GUIDE), "exec"), {"SMALL": {"hidden_size": 32, "num_blocks": 1}})
    assert sorted(path.name for path in Path("runs").iterdir()) == ["further", "pieces", "python", "wider"]


def _check_published_command(words: list[str]) -> None:
    """The arguments of hdlm/train.py are those of a configuration that can be read."""
    read = parse_command_line("guide", words, "")
    launch = [word for word in read.overrides if word.startswith(("hydra/", "hydra."))]
    for word in launch:
        name = word.removeprefix("hydra/launcher=")
        assert word.startswith("hydra.") or (configs() / "hydra" / "launcher" / f"{name}.yaml").is_file()
    plain = [re.sub(r",.*", "", word) for word in read.overrides if word not in launch]
    composed = compose(dataclasses.replace(read, overrides=tuple(plain)), Config.options())
    config = Config.read(composed.table, composed.asked)
    if config.hf_model_id is None:
        config.recipe()


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_guide_commands_parse(words: list[str]) -> None:
    if words[0] == "accelerate":
        assert (GUIDE.parents[1] / words[3]).is_file()
        words = words[5:] if words[4] == "-m" else ["python", *words[4:]]
    if words[0] == "python":
        assert words[1] in ("hdlm/train.py", "hdlm/finetune.py")
        return _check_published_command(words[2:])
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(f"hdlm.cli.{words[1]}").add_arguments(parser)
    args = parser.parse_args(words[2:])
    if getattr(args, "config", None) is not None:
        _check_published_command(["--config-name", args.config, *args.overrides])
    return None


if __name__ == "__main__":
    text = GUIDE.read_text(encoding="utf-8")
    head, mark, rest = text.partition(MARK)
    GUIDE.write_text(f"{head}{mark}{rest.splitlines()[0]}\n\n{_tables()}", encoding="utf-8")
