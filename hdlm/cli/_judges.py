"""Who judges generated text: a language model of others, or a checkpoint of ours."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from hdlm.cli._models import shipped, source_of

if TYPE_CHECKING:
    import torch

    from hdlm.evaluation.judge import AbstractJudge


def add_judge(parser: argparse._ActionsContainer) -> None:
    """Add `--judge`, which may be given several times; read it with `judges_of`."""
    parser.add_argument(
        "--judge",
        action="append",
        default=[],
        metavar="MODEL",
        help="who judges perplexity: the folder or hub name of a causal language model (gpt2-large, say), or a "
        "checkpoint of hdlm; may be given again",
    )


def judges_of(words: list[str], device: torch.device, batch_size: int = 8) -> dict[str, AbstractJudge | str]:
    """Judges by the word that means them; for one that cannot be had, the reason."""
    found: dict[str, AbstractJudge | str] = {}
    for word in words:
        try:
            found[word] = _judge(word, device, batch_size)
        except (ValueError, OSError, ModuleNotFoundError) as error:
            found[word] = " ".join(str(error).split())
    return found


def _judge(word: str, device: torch.device, batch_size: int) -> AbstractJudge:
    from hdlm.evaluation.judge import CheckpointJudge, TransformersJudge

    if not _is_ours(word):
        return TransformersJudge(word, device, batch_size)
    from hdlm import hub
    from hdlm.generation import tokenizer_of

    checkpoint = hub.load(source_of(word), device=device)
    return CheckpointJudge(checkpoint, tokenizer_of(checkpoint), word, device, batch_size)


def _is_ours(word: str) -> bool:
    """Whether a word names a checkpoint that `hdlm.load` opens: a model that ships, or a path to no model of theirs."""
    path = Path(word)
    if not path.exists():
        return word in shipped()
    config = path / "config.json"
    if not config.is_file():
        return True
    from transformers import CONFIG_MAPPING

    found = json.loads(config.read_text(encoding="utf-8"))
    kind = found.get("model_type") if isinstance(found, dict) else None
    return kind == "hdlm" or kind not in CONFIG_MAPPING
