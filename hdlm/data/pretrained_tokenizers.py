"""Tokenizers that were trained elsewhere: from a file, a folder, or the Hugging Face hub.

    find_tokenizer("gpt2")                   # from the cache of the hub, else from the hub
    find_tokenizer("folder/of/files")        # tokenizer.json, or vocab.json and merges.txt
    find_tokenizer("folder/tokenizer.json")

All are converted to a `tokenizer.json`, the one format that every version of `transformers` reads in the same way.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hdlm.data.tokenizer import Tokenizer
from hdlm.hub_access import MissingRepositoryError, cached_file, files_on_hub, hub_errors
from hdlm.package_data import is_path

__all__ = ["find_tokenizer"]

_LAYOUTS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
"""The sets of files that describe a tokenizer. The last has the original names of GPT-2's files."""
_ALIASES = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "bert-base-uncased": "google-bert/bert-base-uncased",
    "bert-base-cased": "google-bert/bert-base-cased",
}
"""Current repositories of names that have changed on the hub."""
_EITHER = "tokenizer.json, or vocab.json and merges.txt"


def find_tokenizer(
    source: str | Path,
    *,
    num_words: int | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    offline: bool = False,
) -> Tokenizer:
    """Find a tokenizer and open it; local files come before the hub.

    Args:
        source: A `tokenizer.json`; a folder that holds one, or `vocab.json` and `merges.txt`; or a name of the hub.
        num_words: Number of words that it must have; None for any number.
        cache_dir: Folder for files of the hub; None for the default of `huggingface_hub`.
        token: Access token for private repositories; None for that of `hf auth login`, if any.
        offline: Whether to use only local files.

    Raises:
        ValueError: If nothing is found, or it is not a tokenizer, or one of another size.
        OSError: If the hub cannot be reached or does not have it; the message names alternatives.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = _layout(path)
        if files is None:
            raise ValueError(f"the folder {path} holds no tokenizer: it should hold {_EITHER}.")
    elif path.is_file():
        files = (path,)
    elif isinstance(source, Path) or is_path(source):
        raise ValueError(
            f"there is no tokenizer at {path}: give a tokenizer.json, a folder that holds {_EITHER}, or the name of a "
            "repository of the hub, such as gpt2."
        )
    else:
        files = _from_hub(source, cache_dir, token, offline)
    tokenizer = _opened(files)
    have = tokenizer.vocabulary.num_words
    if num_words not in (None, have):
        raise ValueError(
            f"the tokenizer {source} has {have} words, but {num_words} are needed. Give the one that the network was "
            f"trained with: by its name on the hub, or a folder that holds {_EITHER}."
        )
    return tokenizer


def _layout(folder: Path) -> tuple[Path, ...] | None:
    """The files of a tokenizer in a folder; None if it holds none."""
    for names in _LAYOUTS:
        files = tuple(folder / name for name in names)
        if all(file.is_file() for file in files):
            return files
    return None


def _opened(files: tuple[Path, ...]) -> Tokenizer:
    if len(files) == 1:
        return Tokenizer.load(files[0])
    vocabulary, merges = files
    try:
        words = json.loads(vocabulary.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{vocabulary} is damaged: it is not a JSON table of words and ids.") from error
    if not isinstance(words, dict):
        raise ValueError(f"{vocabulary} is damaged: it is not a JSON table of words and ids.")
    return Tokenizer.from_json(_gpt2_document(words, _merges(merges)), f"{vocabulary} with {merges.name}")


def _merges(path: Path) -> list[list[str]]:
    """The merges in order, without a `#version` line before them."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    pairs: list[list[str]] = []
    for number, line in enumerate((line.removesuffix("\r") for line in lines), start=1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise ValueError(
                f"{path}, line {number}: a merge is two pieces with a space between; got {line!r}."
            )
        pairs.append(pair)
    return pairs


def _gpt2_document(words: dict[str, Any], merges: list[list[str]]) -> str:
    """The `tokenizer.json` of byte-pair encoding on bytes that adds no space before the text."""
    bytes_of_text = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": bytes_of_text,
            "post_processor": {**bytes_of_text, "trim_offsets": False},
            "decoder": bytes_of_text,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": words,
                "merges": merges,
            },
        }
    )


def _from_hub(name: str, cache_dir: str | Path | None, token: str | None, offline: bool) -> tuple[Path, ...]:
    """Files of a repository of the hub, from its cache if possible."""
    if find_spec("huggingface_hub") is None:
        raise OSError(
            f"there is no tokenizer at {name}; to get it from the hub, install it: pip install 'hdlm[hub]'. Or give a "
            f"folder that holds {_EITHER}."
        )
    names = [name, *([_ALIASES[name]] if name in _ALIASES else [])]
    try:
        for repository in names:
            if files := _from_cache(repository, cache_dir):
                return files
        return _download(names, cache_dir, token, offline=offline)
    except OSError as error:
        reason = str(error)
    raise OSError(
        f"cannot find the tokenizer {name}: there is no file or folder of that name, it is not in the hub's cache, and "
        f"{reason.removesuffix('.')}. There are two ways to supply it: download it where there is a network "
        f"(hf download {names[-1]} tokenizer.json) and copy the cache here (HF_HUB_CACHE says where); or give the path "
        f"of a folder that holds {_EITHER}."
    )


def _download(
    names: list[str], cache_dir: str | Path | None, token: str | None, *, offline: bool
) -> tuple[Path, ...]:
    """Files of the first repository that exists."""
    import huggingface_hub

    for name in names:
        try:
            there = files_on_hub(name, token=token, offline=offline)
        except MissingRepositoryError:
            if name == names[-1]:
                raise
            continue
        for layout in _LAYOUTS:
            if there.issuperset(layout):
                with hub_errors():
                    return tuple(
                        Path(huggingface_hub.hf_hub_download(name, file, cache_dir=cache_dir, token=token))
                        for file in layout
                    )
        break
    raise OSError(f"the repository {name} lacks {_EITHER}")


def _from_cache(repository: str, cache_dir: str | Path | None) -> tuple[Path, ...] | None:
    """Files of the hub that are in its cache."""
    for layout in _LAYOUTS:
        paths = [cached_file(repository, file, cache_dir=cache_dir) for file in layout]
        if all(paths):
            return tuple(path for path in paths if path)
    return None
