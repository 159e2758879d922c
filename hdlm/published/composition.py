"""From the words behind `hdlm/train.py` to a table of options: hydra's composition, with errors that name the nearest.

    --config-name NAME [--config-dir DIR] [--cfg] [key=value ...]

Hydra reads the files, follows their `defaults` and applies the overrides (`model=epsilon_tiny` chooses a file). It does
not start the program: its folder and files are made by the run itself, once everything has been checked.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from hdlm import package_data
from hdlm.atomic import replacing

__all__ = ["Composed", "compose"]


@final
@dataclass(frozen=True)
class Composed:
    """What hydra made of the command line.

    Attributes:
        table: All options, interpolations resolved.
        text: The same in YAML, interpolations as they were written.
        overrides: The words of the command line.
        asked: Dotted names of the options among them.
        folder: Where hydra puts the run.
    """

    table: dict[str, Any]
    text: str
    overrides: tuple[str, ...]
    asked: tuple[str, ...]
    folder: Path

    def write(self, found: Mapping[str, Any]) -> None:
        """Write `.hydra/config.yaml` and `.hydra/overrides.yaml` into the run's folder, as hydra does.

        Args:
            found: Dotted options and the values that they turned out to have.
        """
        from omegaconf import OmegaConf

        config = OmegaConf.create(self.text)
        for option, value in found.items():
            OmegaConf.update(config, option, value)
        overrides = OmegaConf.to_yaml(OmegaConf.create(list(self.overrides)))
        for name, text in (("config.yaml", OmegaConf.to_yaml(config)), ("overrides.yaml", overrides)):
            with replacing(self.folder / ".hydra" / name) as aside:
                aside.write_text(text, encoding="utf-8")


def compose(program: str, arguments: Sequence[str], summary: str) -> Composed | None:
    """Read the command line of a program that is configured by hydra.

    Args:
        program: What to call it.
        arguments: The words behind it.
        summary: What it does.

    Returns:
        None if only the configuration was to be shown.

    Raises:
        ValueError: If there is no such configuration, or an override names an option that there is not.
    """
    parser = argparse.ArgumentParser(program, description=summary)
    parser.add_argument(
        "--config-name", "-cn", required=True, metavar="NAME", help=f"one of {', '.join(_names())}"
    )
    parser.add_argument(
        "--config-dir", "-cd", "--config-path", "-cp", type=Path, help="folder of configurations"
    )
    parser.add_argument("--cfg", action="store_true", help="show the configuration and do nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options to change")
    args = parser.parse_intermixed_args(arguments)
    folder = (args.config_dir or package_data.configs()).absolute()
    name = args.config_name.removesuffix(".yaml")
    if not (folder / f"{name}.yaml").is_file():
        raise ValueError(
            f"there is no configuration {name!r} in {folder}; known: {', '.join(_names(folder))}."
        )
    composed = _composed(folder, name, tuple(args.overrides))
    if args.cfg:
        print(composed.text)
        return None
    return composed


def _names(folder: Path | None = None) -> list[str]:
    return sorted(file.stem for file in (folder or package_data.configs()).glob("*.yaml"))


def _composed(folder: Path, name: str, overrides: tuple[str, ...]) -> Composed:
    import hydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.utils import setup_globals
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    setup_globals()
    try:
        with hydra.initialize_config_dir(str(folder), version_base="1.3"):
            plain = hydra.compose(name)
            parsed = OverridesParser.create().parse_overrides(list(overrides))
            for override in parsed:
                adds, group = override.is_add() or override.is_force_add(), folder / override.key_or_group
                if not adds and not override.is_hydra_override() and not group.is_dir():
                    _check_known(override.key_or_group, plain)
            whole = hydra.compose(name, list(overrides), return_hydra_config=True)
        task = [override for override in parsed if not override.is_hydra_override()]
        run = Path(str(whole.hydra.run.dir))
        config = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
        table = OmegaConf.to_container(config, resolve=True)
        text = OmegaConf.to_yaml(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(f"configuration {name}: {' '.join(str(error).split())}") from error
    assert isinstance(table, dict)
    return Composed(
        {str(key): value for key, value in table.items()},
        text,
        tuple(str(override.input_line) for override in task),
        tuple(override.key_or_group for override in task),
        run,
    )


def _check_known(option: str, plain: Any) -> None:
    """Refuse an override of an option that there is not."""
    from omegaconf import OmegaConf

    known = list(_options(OmegaConf.to_container(plain), ""))
    if option in known:
        return
    nearest = difflib.get_close_matches(option, known, n=1, cutoff=0.0)[0]
    raise ValueError(f"unknown option `{option}`; did you mean `{nearest}`?")


def _options(table: Any, name: str) -> list[str]:
    """Dotted names of a table's options, and of the tables in it."""
    if not isinstance(table, dict):
        return [name]
    inside = [
        one for key, value in table.items() for one in _options(value, f"{name}.{key}" if name else key)
    ]
    return [name, *inside] if name else inside
