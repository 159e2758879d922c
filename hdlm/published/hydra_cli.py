"""From the command line of `hdlm/train.py` to a table of options: hydra's composition, with helpful errors.

    --config-name NAME [--config-dir DIR] [--cfg] [key=value ...]
    --config-name NAME --multirun key=value,value ...                 every combination, one run after the other
    --config-name NAME --multirun hydra/launcher=submitit_slurm ...   every combination as a job of SLURM

Hydra reads the files, follows their `defaults` and applies the overrides (`model=epsilon_tiny` selects a file). It
starts programs only in a sweep; a run makes its folder and its files itself, after everything has been checked.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from hdlm import package_data
from hdlm.atomic import replacing
from hdlm.strict_config import nearest

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

__all__ = ["CommandLine", "ComposedConfig", "compose", "composed_here", "parse_command_line", "sweep"]

_QUIET = ("hydra.output_subdir=null", "hydra/job_logging=none")
"""Settings that stop hydra from writing files: the runs of a sweep write their own."""


@final
@dataclass(frozen=True)
class CommandLine:
    """A parsed command line.

    Attributes:
        folder: Folder of the configurations.
        name: Name of the configuration.
        overrides: The `key=value` arguments, in hydra's grammar.
        shows: Whether the configuration is only printed.
        sweeps: Whether several values of an option start several runs.
    """

    folder: Path
    name: str
    overrides: tuple[str, ...]
    shows: bool = False
    sweeps: bool = False


@final
@dataclass(frozen=True)
class ComposedConfig:
    """Hydra's configuration for a command line.

    Attributes:
        table: All options, with interpolations resolved.
        text: The configuration as YAML, with interpolations as written.
        overrides: The overrides of the command line.
        asked: Dotted names of the overridden options.
        folder: Hydra's folder for the run.
    """

    table: dict[str, Any]
    text: str
    overrides: tuple[str, ...]
    asked: tuple[str, ...]
    folder: Path

    def write(self, found: Mapping[str, Any]) -> None:
        """Write `.hydra/config.yaml` and `.hydra/overrides.yaml` into the run's folder, as hydra does.

        Args:
            found: Dotted options and their final values.
        """
        from omegaconf import OmegaConf

        config = OmegaConf.create(self.text)
        for option, value in found.items():
            OmegaConf.update(config, option, value)
        overrides = OmegaConf.to_yaml(OmegaConf.create(list(self.overrides)))
        for name, text in (("config.yaml", OmegaConf.to_yaml(config)), ("overrides.yaml", overrides)):
            with replacing(self.folder / ".hydra" / name) as aside:
                aside.write_text(text, encoding="utf-8")


def parse_command_line(program: str, arguments: Sequence[str], summary: str) -> CommandLine:
    """Parse the command line of a program with a hydra configuration.

    Args:
        program: Name of the program.
        arguments: Arguments of the program.
        summary: Description of the program.

    Raises:
        ValueError: If the configuration does not exist.
    """
    parser = argparse.ArgumentParser(program, description=summary)
    parser.add_argument(
        "--config-name", "-cn", required=True, metavar="NAME", help=f"one of {', '.join(_names())}"
    )
    parser.add_argument(
        "--config-dir", "-cd", "--config-path", "-cp", type=Path, help="folder of configurations"
    )
    parser.add_argument("--cfg", action="store_true", help="show the configuration and do nothing")
    parser.add_argument(
        "--multirun", "-m", action="store_true", help="one run for each combination of key=value,value"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options to change")
    args = parser.parse_intermixed_args(arguments)
    folder = (args.config_dir or package_data.configs()).absolute()
    name = args.config_name.removesuffix(".yaml")
    if not (folder / f"{name}.yaml").is_file():
        raise ValueError(
            f"there is no configuration {name!r} in {folder}; known: {', '.join(_names(folder))}."
        )
    return CommandLine(folder, name, tuple(args.overrides), args.cfg, args.multirun)


def compose(words: CommandLine, known: Iterable[str] = ()) -> ComposedConfig:
    """Compose the configuration of a command line with hydra.

    Args:
        words: The parsed command line.
        known: Options in addition to those of the file, which may be given without hydra's `+`.

    Raises:
        ValueError: If an override names an unknown option, or hydra refuses it.
    """
    import hydra

    with _hydra_errors(words.name):
        overrides, parsed = _checked(words, tuple(known))
        with hydra.initialize_config_dir(str(words.folder), version_base="1.3"):
            whole = hydra.compose(words.name, overrides, return_hydra_config=True)
        task = [override for override in parsed if not override.is_hydra_override()]
        return _composed(
            whole,
            [str(override.input_line) for override in task],
            [option for override in task for option in _asked(override)],
            Path(str(whole.hydra.run.dir)),
        )


def sweep(words: CommandLine, known: Iterable[str], job: Callable[[Any], object]) -> None:
    """Start every run of a command line with hydra's sweeper and launcher.

    Args:
        words: The parsed command line.
        known: Additional options, as in `compose`.
        job: Called once per run, by the launcher, with hydra's configuration; see `composed_here`. A launcher of
            cluster jobs pickles it, so it must be a function of a module.

    Raises:
        ValueError: If an override names an unknown option, hydra refuses it, or the launcher is missing.
    """
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra

    with _hydra_errors(words.name):
        overrides, _ = _checked(words, tuple(known))
        version.setbase("1.3")
        GlobalHydra.instance().clear()
        try:
            Hydra.create_main_hydra2(words.name, create_config_search_path(str(words.folder))).multirun(
                words.name, job, [*overrides, *_QUIET], with_log_configuration=False
            )
        finally:
            GlobalHydra.instance().clear()


def composed_here(config: Any) -> ComposedConfig:
    """The result of `compose`, for use within a job of `sweep`.

    Args:
        config: The configuration that hydra passes to the job.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser.overrides_parser import OverridesParser

    hydra = HydraConfig.get()
    words = [str(word) for word in hydra.overrides.task]
    parsed = OverridesParser.create().parse_overrides(words)
    asked = [option for override in parsed for option in _asked(override)]
    return _composed(config, words, asked, Path(str(hydra.runtime.output_dir)))


def _names(folder: Path | None = None) -> list[str]:
    return sorted(file.stem for file in (folder or package_data.configs()).glob("*.yaml"))


@contextmanager
def _hydra_errors(name: str) -> Iterator[None]:
    """Convert hydra's errors to errors of one line.

    Raises:
        ValueError: In place of hydra's errors.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        complaint = " ".join(str(error).split())
        advice = ' (pip install "hdlm[slurm]")' if "submitit" in complaint else ""
        raise ValueError(f"configuration {name}: {complaint}{advice}") from error


def _checked(words: CommandLine, known: tuple[str, ...]) -> tuple[list[str], list[Override]]:
    """The overrides, with hydra's `++` before options that the file lacks, and the parsed overrides.

    Raises:
        ValueError: If an override names an unknown option.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.utils import setup_globals

    setup_globals()
    there = _options_of(words.folder, words.name)
    parsed = OverridesParser.create().parse_overrides(list(words.overrides))
    overrides = []
    for word, override in zip(words.overrides, parsed, strict=True):
        group = words.folder / override.key_or_group
        adds = override.is_add() or override.is_force_add()
        settled = adds or override.is_hydra_override() or group.is_dir()
        absent = [] if settled else [option for option in _asked(override) if option not in there]
        for option in absent:
            if option not in known:
                meant = nearest(option, sorted({*there, *known}))
                raise ValueError(f"unknown option `{option}`; did you mean `{meant}`?")
        overrides.append(f"++{word}" if absent else word)
    return overrides, parsed


@functools.cache
def _options_of(folder: Path, name: str) -> frozenset[str]:
    """Dotted names of the options that a configuration sets."""
    import hydra
    from omegaconf import OmegaConf

    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        return frozenset(_options(OmegaConf.to_container(hydra.compose(name)), ""))


def _asked(override: Override) -> list[str]:
    """Dotted names of the options that an override sets, also those in a table that it sets."""
    value = None if override.is_delete() or override.is_sweep_override() else override.value()
    table = {str(key): item for key, item in value.items()} if isinstance(value, dict) else None
    return _options(table, override.key_or_group)


def _composed(config: Any, words: Sequence[str], asked: Sequence[str], folder: Path) -> ComposedConfig:
    """Hydra's configuration, without its own table."""
    from omegaconf import OmegaConf

    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    table = OmegaConf.to_container(own, resolve=True)
    assert isinstance(table, dict)
    named = {str(key): value for key, value in table.items()}
    return ComposedConfig(named, OmegaConf.to_yaml(own), tuple(words), tuple(asked), folder)


def _options(table: Any, name: str) -> list[str]:
    """Dotted names of a table's options, including those of nested tables."""
    if not isinstance(table, dict):
        return [name]
    inside = [
        option for key, value in table.items() for option in _options(value, f"{name}.{key}" if name else key)
    ]
    return [name, *inside] if name else inside
