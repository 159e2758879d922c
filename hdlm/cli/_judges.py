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


USUAL, NOBODY = "gpt2-large", "none"
"""Who judges unless somebody else is named, as the field has it; and the word for no judge."""


def add_judge(parser: argparse._ActionsContainer) -> None:
    """Add `--judge`, which may be given several times; read it with `judges_asked` and `judges_of`."""
    parser.add_argument(
        "--judge",
        action="append",
        metavar="MODEL",
        help=f"who judges perplexity: the folder or hub name of a causal language model, or a checkpoint of hdlm; may "
        f"be given again; {NOBODY} for nobody (default: {USUAL})",
    )


def judges_asked(args: argparse.Namespace) -> list[str]:
    """The words that `--judge` took down.

    Raises:
        ValueError: If nobody is asked, and somebody too.
    """
    words: list[str] = args.judge or [USUAL]
    if words == [NOBODY]:
        return []
    if NOBODY in words:
        raise ValueError(f"--judge {NOBODY} is for no judge at all; got {', '.join(words)}.")
    return words


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
