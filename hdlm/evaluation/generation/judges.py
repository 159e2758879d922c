"""Who judges generated text, by the word that a user says: a language model of others, or a checkpoint of ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from hdlm import hub
from hdlm.evaluation.generation.judge import AbstractJudge, CheckpointJudge, TransformersJudge
from hdlm.package_data import pretrained

__all__ = ["NO_JUDGE", "USUAL_JUDGE", "judges_of", "named_judges"]

USUAL_JUDGE = "gpt2-large"
"""The model that judges unless another is named, as in the field."""
NO_JUDGE = "none"
"""The word for no judge."""


def named_judges(words: Sequence[str] | None) -> tuple[str, ...]:
    """The judges that a command line names: the usual one by default.

    Args:
        words: Names of judges, or `NO_JUDGE`.

    Raises:
        ValueError: If `NO_JUDGE` is combined with a judge.
    """
    if words is not None and NO_JUDGE in words and list(words) != [NO_JUDGE]:
        raise ValueError(f"--judge {NO_JUDGE} is for no judge at all; got {', '.join(words)}.")
    return tuple(word for word in words or [USUAL_JUDGE] if word != NO_JUDGE)


def judges_of(
    words: Sequence[str], device: torch.device, batch_size: int = 8, *, offline: bool = False
) -> dict[str, AbstractJudge | str]:
    """Judges by the word that means them; for one that cannot be had, the reason.

    Args:
        words: Each a folder or hub name of a causal language model, or whatever `hdlm.load` opens.
        device: Where they compute.
        batch_size: Texts in a pass.
        offline: Whether the hub must not be asked.
    """
    found: dict[str, AbstractJudge | str] = {}
    for word in words:
        try:
            found[word] = _judge(word, device, batch_size, offline=offline)
        except (ValueError, OSError, ModuleNotFoundError) as error:
            found[word] = " ".join(str(error).split())
    return found


def _judge(word: str, device: torch.device, batch_size: int, *, offline: bool) -> AbstractJudge:
    if not _is_ours(word):
        home = str(Path(word).expanduser()) if word.startswith("~") else word
        return TransformersJudge(home, device, batch_size, offline=offline)
    checkpoint = hub.load(word, device=device, offline=offline)
    return CheckpointJudge(checkpoint, checkpoint.tokenizer, word, device, batch_size)


def _is_ours(word: str) -> bool:
    """Whether a word names a checkpoint that `hdlm.load` opens: a model that ships, or a path to no model of theirs."""
    path = Path(word).expanduser()
    if not path.exists():
        return (pretrained() / word / "config.json").is_file()
    config = path / "config.json"
    if not config.is_file():
        return True
    from transformers import CONFIG_MAPPING

    found = json.loads(config.read_text(encoding="utf-8"))
    kind = found.get("model_type") if isinstance(found, dict) else None
    return kind == "hdlm" or kind not in CONFIG_MAPPING
