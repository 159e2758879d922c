"""What `eval_modeling` and `eval_generation` have in common: options, the model, its tokenizer, text, results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hdlm import hub, threads
from hdlm.atomic import keeping, replacing
from hdlm.checkpoint import Checkpoint
from hdlm.data import Tokenizer, find_tokenizer
from hdlm.evaluation.text import find_text
from hdlm.published.model import pick_device

__all__ = ["bar", "check_counts", "load_model", "parser", "read_documents", "tokenizer_for", "write_json"]


def parser(program: str, summary: str) -> argparse.ArgumentParser:
    """The options that both commands have."""
    parser = argparse.ArgumentParser(program, description=summary)
    parser.add_argument(
        "--checkpoint_path", required=True, help="a hub id, a checkpoint folder, a run, or a file of weights"
    )
    parser.add_argument(
        "--config_path", type=Path, help="the config, or the run that has it, if it is elsewhere"
    )
    parser.add_argument(
        "--weights", choices=("averaged", "raw"), default="averaged", help="default: averaged"
    )
    parser.add_argument("--tokenizer", help="a tokenizer.json, a folder or a hub name (default: the model's)")
    parser.add_argument("--data-dir", type=Path, help="folder of data sets (default: $HDLM_DATA_DIR)")
    parser.add_argument("--device", help="default: a GPU where there is one")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default: 0)")
    return parser


def check_counts(args: argparse.Namespace, *options: str) -> None:
    """See that counts are positive, before anything is done.

    Raises:
        ValueError: If one that is given is not.
    """
    for option in options:
        given = getattr(args, option)
        if given is not None and given < 1:
            raise ValueError(f"--{option} must be at least 1; got {given}.")


def load_model(args: argparse.Namespace) -> Checkpoint:
    """The model that the options name, on their device."""
    device = pick_device(args.device)
    if device.type == "cpu":
        threads.set_num_threads()
    return hub.load(args.checkpoint_path, weights=args.weights, config=args.config_path, device=device)


def tokenizer_for(args: argparse.Namespace, checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer that was named, else the model's, else the one in its run, else the one its config names.

    Raises:
        ValueError: If there is none, or one of another size.
    """
    words = checkpoint.vocabulary.num_words
    if args.tokenizer is not None:
        return find_tokenizer(args.tokenizer, num_words=words)
    if checkpoint.tokenizer_json is not None:
        return checkpoint.tokenizer
    path = Path(args.checkpoint_path)
    folders = [args.config_path, path.parent.parent] if path.is_file() else [args.config_path]
    for folder in folders:
        if folder is not None and (folder / "tokenizer.json").is_file():
            return find_tokenizer(folder / "tokenizer.json", num_words=words)
    named = hub.inspect(
        args.checkpoint_path, weights=args.weights, config=args.config_path
    ).blueprint.tokenizer
    if named is None:
        raise ValueError(f"{args.checkpoint_path} does not say which tokenizer it has: give --tokenizer.")
    return find_tokenizer(named, num_words=words)


def read_documents(name: str, folder: Path | None) -> tuple[str, ...]:
    """Text of a data set, or of files."""
    return tuple(find_text(name, folder=folder).corpus.documents())


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all.

    Raises:
        NotKeptError: If it cannot be written; the error has the content.
    """
    with keeping(lambda: json.dumps(content)), replacing(path) as aside:
        aside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, nothing elsewhere; what it yields takes how many are done, of how many."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)
