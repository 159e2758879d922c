"""The files of a model that is given as a folder, a file, a run, or a repository of the hub.

| source | config | weights |
|---|---|---|
| a folder | `config.json`, else `config.yaml` | `model.safetensors`, its shards by index, else `pytorch_model.bin` |
| a published run | `.hydra/config.yaml` | newest `checkpoints/checkpoint_N.pth` |
| a file of weights | in its folder, or of its run, or in a Lightning checkpoint itself | itself |
| `org/name` | as a folder | as a folder |
| a model that ships with hdlm | as a folder | as a folder |

Local files come before the hub.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from hdlm.checkpoint import WeightsName
from hdlm.hub.stored import PICKLES
from hdlm.hub_access import cached_file, files_on_hub, hub_errors
from hdlm.package_data import is_path, pretrained
from hdlm.strict_config import did_you_mean

__all__ = ["Hub", "Source", "find"]

CONFIGS = ("config.json", "config.yaml")
RUN_CONFIG = Path(".hydra", "config.yaml")
SINGLE, INDEX, PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
RAW = "raw.safetensors"
TOKENIZERS = ("tokenizer.json",)
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_NUMBERED = re.compile(r"checkpoint_(\d+)\.pth")
_SUFFIXES = (".safetensors", *PICKLES)


@final
@dataclass(frozen=True)
class Hub:
    """Access to the hub.

    Attributes:
        revision: Branch, tag or commit; None for the newest.
        cache_dir: Folder for its files; None for the default of `huggingface_hub`.
        token: Access token for private repositories; None for that of `hf auth login`, if any.
        offline: Whether to use only local files.
    """

    revision: str | None = None
    cache_dir: str | Path | None = None
    token: str | None = None
    offline: bool = False


@final
@dataclass(frozen=True)
class Source:
    """The files of one model.

    Attributes:
        origin: Name of the model in messages.
        config: Its config; None if only the file of weights may hold one.
        weights: Its weights; several files are parts of one set.
        tokenizer: Its `tokenizer.json`, or None.
        fetched: Whether the hub was reached.
    """

    origin: str
    config: Path | None
    weights: tuple[Path, ...]
    tokenizer: Path | None = None
    fetched: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the model."""
        return tuple(file for file in (self.config, *self.weights, self.tokenizer) if file is not None)


def find(
    source: str | Path, hub: Hub, weights: WeightsName = "averaged", config: Path | None = None
) -> Source:
    """Find the files of a model.

    Args:
        source: Folder, file, published run, name of a shipped model, or hub id `org/name`.
        hub: Access to the hub, if it is needed.
        weights: The set of weights, if they are different files.
        config: A config file, or a folder or run with one, in place of the one with the weights.

    Raises:
        ValueError: If something is missing; the message says what, and where it was expected.
        OSError: If the hub cannot be reached or has no such repository; the message names alternatives.
    """
    path, word = Path(source).expanduser(), str(source)
    if path.is_dir():
        return _folder(path, str(path), weights, config)
    if path.is_file():
        return _file(path, config)
    if isinstance(source, str) and "/" not in word and (pretrained() / word / CONFIGS[0]).is_file():
        return _folder(pretrained() / word, word, weights, config)
    if is_path(source):
        raise ValueError(
            f"{_absent(word)} Give a folder with a model, or a file of weights ({', '.join(_SUFFIXES)})."
        )
    if "/" not in word:
        raise ValueError(
            f"there is no folder or file {word}, and it is neither a model that ships with hdlm nor the id of a hub "
            "repository (org/name)."
        )
    folder, fetched = _repository(word, hub, weights)
    files = _folder(folder, word, weights, config)
    return dataclasses.replace(files, fetched=fetched)


def _absent(word: str) -> str:
    """The sentence that a path does not exist, with the path beside it that is spelled alike."""
    beside = [str(entry) for entry in Path(word).expanduser().parent.glob("*")]
    return f"there is no folder or file {word}{did_you_mean(word, beside) or '.'}"


def _folder(folder: Path, origin: str, weights: WeightsName, config: Path | None) -> Source:
    if (folder / RUN_CONFIG).is_file() and not (folder / SINGLE).is_file():
        return _run(folder, origin, config)
    files: tuple[Path, ...]
    if weights == "raw" and (folder / RAW).is_file():
        files = (folder / RAW,)
    elif (folder / SINGLE).is_file():
        files = (folder / SINGLE,)
    elif (folder / INDEX).is_file():
        files = _shards(folder)
    elif (folder / PICKLED).is_file():
        files = (folder / PICKLED,)
    else:
        there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8])
        raise ValueError(
            f"{origin} has no weights: neither {SINGLE}, nor {INDEX}, nor {PICKLED}; and it is not a published run, "
            f"which has {RUN_CONFIG}. It holds: {there or 'nothing'}."
        )
    return Source(origin, _config(config, _configs(folder), origin), files, _first(folder, TOKENIZERS))


def _run(folder: Path, origin: str, config: Path | None) -> Source:
    """A run of the published trainer: its newest numbered checkpoint, else the one that it resumes from."""
    numbered = {
        int(match[1]): file
        for file in (folder / "checkpoints").glob("checkpoint_*.pth")
        if (match := _NUMBERED.fullmatch(file.name))
    }
    rolling = folder / "checkpoints-meta" / "checkpoint.pth"
    if numbered:
        newest = numbered[max(numbered)]
    elif rolling.is_file():
        newest = rolling
    else:
        raise ValueError(
            f"the run {origin} has no checkpoint: neither checkpoints/checkpoint_N.pth nor "
            "checkpoints-meta/checkpoint.pth."
        )
    own = _config(config, [folder / RUN_CONFIG], origin)
    return Source(origin, own, (newest,), _first(folder, TOKENIZERS))


def _file(path: Path, config: Path | None) -> Source:
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"{path} is not a file of weights; these are {', '.join(_SUFFIXES)}.")
    if config is not None and (config / RUN_CONFIG).is_file():
        config = config / RUN_CONFIG  # a run may also hold a checkpoint of hdlm, which is another file
    places = beside(path)
    if config is None and path.suffix in PICKLES and not any(file.is_file() for file in places):
        own = None
    else:
        own = _config(config, places, str(path))
    return Source(str(path), own, (path,), _first(path.parent, TOKENIZERS))


def _config(given: Path | None, beside: Sequence[Path], origin: str) -> Path:
    """The given config, or the first of some files that exists."""
    if given is not None:
        if given.is_file():
            return given
        if not given.is_dir():
            raise ValueError(f"there is no config {given}.")
        beside, origin = _configs(given), str(given)
    for file in beside:
        if file.is_file():
            return file
    raise no_config(origin, beside)


def no_config(origin: str, beside: Sequence[Path], *, inside: bool = False) -> ValueError:
    """The error for weights without a config.

    Args:
        origin: Name of the weights.
        beside: Paths where a config was expected.
        inside: Whether the weights hold the configuration of another kind of training.
    """
    other = " The configuration inside the file is not of a model that hdlm reads." if inside else ""
    return ValueError(
        f"{origin} has no config, so the format of its weights is unknown: there is neither "
        f"{' nor '.join(str(file) for file in beside)}.{other} Give its path as `config`."
    )


def beside(path: Path) -> list[Path]:
    """Possible paths of the config of a file of weights."""
    return [*_configs(path.parent), path.parent.parent / RUN_CONFIG]


def _configs(folder: Path) -> list[Path]:
    return [folder / name for name in (*CONFIGS, RUN_CONFIG)]


def _first(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _shards(folder: Path) -> tuple[Path, ...]:
    """The files in an index."""
    index = folder / INDEX
    try:
        table = json.loads(index.read_bytes())["weight_map"]
        names = sorted(set(table.values()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{index} is damaged: it is not JSON with a table `weight_map` of file names."
        ) from error
    for name in names:
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise ValueError(
                f"{index} names {name!r}, which is not a part of a model (model-1-of-2.safetensors)."
            )
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(f"{folder} lacks {', '.join(absent)}, which {INDEX} names.")
    return tuple(folder / name for name in names)


def _repository(name: str, hub: Hub, weights: WeightsName) -> tuple[Path, bool]:
    """A local folder with the needed files of a repository, and whether the hub was reached."""
    try:
        import huggingface_hub
        from huggingface_hub import constants
    except ModuleNotFoundError as error:
        raise OSError(
            f"{_absent(name)} To read it from the hub, install it: pip install 'hdlm[hub]'."
        ) from error
    try:
        there = files_on_hub(name, revision=hub.revision, token=hub.token, offline=hub.offline)
        with hub_errors():
            folder = huggingface_hub.snapshot_download(
                name,
                revision=hub.revision,
                cache_dir=hub.cache_dir,
                token=hub.token,
                allow_patterns=sorted(_needed(there, weights)),
            )
        return Path(folder), True
    except OSError as error:
        reason = str(error)
    for file in (*CONFIGS, *_WEIGHTS):
        if cached := cached_file(name, file, revision=hub.revision, cache_dir=hub.cache_dir):
            return cached.parent, False
    revision = "" if hub.revision is None else f", revision {hub.revision}"
    kept = hub.cache_dir or constants.HF_HUB_CACHE
    raise OSError(
        f"{_absent(name)} From the hub, hdlm cannot load {name}{revision}: it is not in the cache {kept}, and "
        f"{reason}. To work offline, download it where there is a network (hf download), copy the cache or the folder "
        "here, and give the folder, or set HF_HUB_OFFLINE=1 and HF_HUB_CACHE."
    )


_WEIGHTS = (SINGLE, INDEX, PICKLED)


def _needed(there: set[str], weights: WeightsName) -> set[str]:
    """The files of a repository that are needed, with one copy of the weights."""
    wanted = there & {*CONFIGS, *TOKENIZERS}
    if weights == "raw" and RAW in there:
        return wanted | {RAW}
    if SINGLE in there:
        return wanted | {SINGLE}
    if INDEX in there:
        return wanted | {INDEX} | {name for name in there if _SHARD.fullmatch(name)}
    return wanted | (there & {PICKLED})
