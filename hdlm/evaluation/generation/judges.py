"""Judges of generated text, by their names: a language model of `transformers`, or a checkpoint of hdlm."""

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
"""The default judge, as is usual in the literature."""
NO_JUDGE = "none"
"""The name that stands for no judge."""


def named_judges(words: Sequence[str] | None) -> tuple[str, ...]:
    """The judges that a command line names: the default judge if it names none.

    Args:
        words: Names of judges, or `NO_JUDGE`.

    Raises:
        ValueError: If `NO_JUDGE` is combined with a judge.
    """
    if words is not None and NO_JUDGE in words and list(words) != [NO_JUDGE]:
        raise ValueError(
            f"--judge {NO_JUDGE} means that there is no judge, so give it alone; got {', '.join(words)}."
        )
    return tuple(word for word in words or [USUAL_JUDGE] if word != NO_JUDGE)


def judges_of(
    words: Sequence[str], device: torch.device, batch_size: int = 8, *, offline: bool = False
) -> dict[str, AbstractJudge | str]:
    """Judges by name; if a judge cannot be opened, the reason.

    Args:
        words: Names, each a folder or hub name of a causal language model, or a model that `hdlm.load` opens.
        device: Device of the judges.
        batch_size: Texts per forward pass.
        offline: Whether access to the hub is forbidden.
    """
    judges: dict[str, AbstractJudge | str] = {}
    for word in words:
        try:
            judges[word] = _judge(word, device, batch_size, offline=offline)
        except (ValueError, OSError, ModuleNotFoundError) as error:
            judges[word] = " ".join(str(error).split())
    return judges


def _judge(word: str, device: torch.device, batch_size: int, *, offline: bool) -> AbstractJudge:
    if not _is_ours(word):
        home = str(Path(word).expanduser()) if word.startswith("~") else word
        return TransformersJudge(home, device, batch_size, offline=offline)
    checkpoint = hub.load(word, device=device, offline=offline)
    return CheckpointJudge(checkpoint, checkpoint.tokenizer, word, device, batch_size)


def _is_ours(word: str) -> bool:
    """Whether `hdlm.load` opens this name: a shipped model, or a path that is not a `transformers` model."""
    path = Path(word).expanduser()
    if not path.exists():
        return (pretrained() / word / "config.json").is_file()
    config = path / "config.json"
    if not config.is_file():
        return True
    from transformers import CONFIG_MAPPING

    settings = json.loads(config.read_text(encoding="utf-8"))
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    return kind == "hdlm" or kind not in CONFIG_MAPPING
