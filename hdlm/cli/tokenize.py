"""Tokenise text once, into memory-mapped shards to train on.

Examples:
  hdlm tokenize texts/ -o shards --tokenizer gpt2 --validation 0.01
  hdlm tokenize 'dump/*.jsonl.gz' -o shards --key body --tokenizer train --vocabulary 8192
  hdlm train --text shards --output runs/big

If it is stopped or killed, the same command resumes it. Documents are chosen for validation by a hash of their text, so
the choice does not depend on the other documents.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hdlm.cli._options import Options, add_json, at_least_one, print_json
from hdlm.cli._outputs import FOLDER

if TYPE_CHECKING:
    from hdlm.data import AbstractCorpus, Tokenizer

CORPUS = Options("hdlm.data.corpora:corpus")
SHARDS = Options(
    "hdlm.data.shards:write_shards",
    corpus="it is the positional SOURCE",
    tokenizer="--tokenizer names it",
    folder="it is --output",
    watch="a function is no flag",
    say="a function is no flag",
    shard_tokens="it is for tests",
)
_WORDS: int = Options("hdlm.training.recipe:DataSettings").declared["vocabulary"].default
"""Default size of a trained tokenizer."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the text, the tokenizer and the output."""
    parser.add_argument(
        "source", nargs="+", help="files, folders, globs (text, .jsonl, .parquet), or a corpus by name"
    )
    parser.add_argument("-o", "--output", type=FOLDER, required=True, help="folder for the shards")
    parser.add_argument(
        "--tokenizer",
        required=True,
        help="a tokenizer.json, a folder, a name of the hub (gpt2), or `train`: made from a sample of the text",
    )
    parser.add_argument(
        "--vocabulary",
        type=at_least_one,
        help=f"number of words of the tokenizer (default: those of a given one, {_WORDS} for one to train)",
    )
    CORPUS.add(parser, "key")
    SHARDS.add(parser, "share", flags=("--validation",), metavar="SHARE")
    SHARDS.add(parser, "renew")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Tokenise, and print a summary."""
    from rich.console import Console

    from hdlm.data import corpus
    from hdlm.data.shards import write_shards
    from hdlm.progress import share_bar

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    text = corpus(*args.source, **CORPUS.values(args))
    size = text.size() or 0
    tokenizer = _tokenizer(args, text)
    with share_bar("tokenising", shown=console.is_terminal) as bar:
        shards = write_shards(
            text,
            tokenizer,
            args.output,
            **SHARDS.values(args),
            say=console.print,
            watch=lambda now: bar(
                min(1.0, now.characters / max(size, now.characters)), f"{now.tokens / 1e6:,.1f}M tokens"
            ),
        )
    shards.verify()
    if args.share and not shards.manifest.count("validation").tokens:
        console.print(
            f"nothing was set aside: {args.share:g} of so few documents came to none. Say a larger --validation, "
            "or measure with other text (data.validation_corpus)."
        )
    train, validation = (shards.manifest.count(side) for side in ("train", "validation"))
    if args.json:
        print_json(
            {
                "folder": str(args.output),
                "shards": len(shards.manifest.shards),
                "dtype": shards.manifest.dtype,
                "train": vars(train),
                "validation": vars(validation),
            }
        )
        return 0
    for name, count in (("to learn from", train), ("set aside", validation)):
        print(f"{name:>13}: {count.documents:,} documents, {count.tokens:,} tokens, {count.bytes:,} bytes")
    print(f"{args.output}: {len(shards.manifest.shards)} shards of {shards.manifest.dtype}")
    return 0


def _tokenizer(args: argparse.Namespace, text: AbstractCorpus) -> Tokenizer:
    """The requested tokenizer; one that an interrupted call has trained is read from the shards' folder."""
    from hdlm.data import find_tokenizer, train_tokenizer
    from hdlm.data.encoding import SAMPLE, sample_of
    from hdlm.data.shards import Shards

    if args.tokenizer != "train":
        return find_tokenizer(args.tokenizer, num_words=args.vocabulary)
    if Shards.are_in(args.output) and not args.renew:
        return find_tokenizer(args.output)
    return train_tokenizer(sample_of(text, SAMPLE, args.share), args.vocabulary or _WORDS)
