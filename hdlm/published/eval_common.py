"""Common parts of `eval_modeling` and `eval_generation`: options, the model with its tokenizer, results."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from hdlm import hub, threads
from hdlm.atomic import keeping, replacing
from hdlm.checkpoint import Checkpoint
from hdlm.data import find_tokenizer
from hdlm.published.model import pick_device

__all__ = ["check_counts", "load_model", "parser", "with_tokenizer", "write_json"]


def parser(program: str, summary: str) -> argparse.ArgumentParser:
    """The options that both commands share."""
    parser = argparse.ArgumentParser(program, description=summary)
    parser.add_argument(
        "--checkpoint_path", required=True, help="a hub id, a checkpoint folder, a run, or a file of weights"
    )
    parser.add_argument(
        "--config_path", type=Path, help="the config, or the run that has it, if it is not beside the weights"
    )
    parser.add_argument(
        "--weights",
        choices=("averaged", "raw"),
        default="averaged",
        help="weights to load (default: averaged)",
    )
    parser.add_argument("--tokenizer", help="a tokenizer.json, a folder or a hub name (default: the model's)")
    parser.add_argument("--data-dir", type=Path, help="folder of data sets (default: $HDLM_DATA_DIR)")
    parser.add_argument("--device", help="device to compute on (default: a GPU if there is one)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: 0)")
    return parser


def check_counts(args: argparse.Namespace, *options: str) -> None:
    """Check that counts are positive, before the work begins.

    Raises:
        ValueError: If a given count is not positive.
    """
    for option in options:
        given = getattr(args, option)
        if given is not None and given < 1:
            raise ValueError(f"--{option} must be at least 1; got {given}.")


def load_model(args: argparse.Namespace) -> Checkpoint:
    """The model that the options name, on its device."""
    device = pick_device(args.device)
    if device.type == "cpu":
        threads.set_num_threads()
    return hub.load(args.checkpoint_path, weights=args.weights, config=args.config_path, device=device)


def with_tokenizer(args: argparse.Namespace, checkpoint: Checkpoint) -> Checkpoint:
    """The model with the named tokenizer; otherwise with its own, that of its run, or that of its config.

    Raises:
        ValueError: If there is no tokenizer, or its size differs.
    """
    if args.tokenizer is None and checkpoint.tokenizer_json is not None:
        return checkpoint
    tokenizer = find_tokenizer(_tokenizer_name(args), num_words=checkpoint.vocabulary.num_words)
    return replace(checkpoint, tokenizer_json=tokenizer.to_json())


def _tokenizer_name(args: argparse.Namespace) -> str | Path:
    if args.tokenizer is not None:
        return str(args.tokenizer)
    path = Path(args.checkpoint_path)
    for folder in [args.config_path, path.parent.parent] if path.is_file() else [args.config_path]:
        if folder is not None and (folder / "tokenizer.json").is_file():
            return Path(folder / "tokenizer.json")
    named = hub.inspect(
        args.checkpoint_path, weights=args.weights, config=args.config_path
    ).blueprint.tokenizer
    if named is None:
        raise ValueError(f"{args.checkpoint_path} does not name its tokenizer: give --tokenizer.")
    return named


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically.

    Raises:
        NotKeptError: If the file cannot be written; the error holds the content.
    """
    with keeping(lambda: json.dumps(content)), replacing(path) as aside:
        aside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
