"""The mask among the tokens of a tokenizer: several formats name it nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

from hdlm.vocabulary import MASK_TOKENS

__all__ = ["mask_token"]


def mask_token(tokenizer: Path | None) -> int | None:
    """Id of the mask in a `tokenizer.json`, or None if the file has no mask or cannot be read.

    Args:
        tokenizer: The file, or None.
    """
    if tokenizer is None:
        return None
    try:
        added = json.loads(tokenizer.read_text(encoding="utf-8")).get("added_tokens", [])
        ids = {token["content"]: token["id"] for token in added}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # whoever reads the tokenizer itself reports what is wrong with it
    masks = [ids[name] for name in MASK_TOKENS if name in ids]
    return masks[0] if len(masks) == 1 and isinstance(masks[0], int) else None
