"""Send a checkpoint to the Hugging Face hub, with its model card; the repository is private unless --public.

--dry-run shows the files and the card, and touches no network. The layout hdlm is read by hdlm and by transformers, the
layout published by hdlm and by the published code of the paper (see `hdlm export`). Log in with `hf auth login`, or set
HF_TOKEN.

Examples:
  hdlm push runs/book me/my-model --dry-run
  hdlm push runs/book me/my-model
  hdlm push runs/book me/my-model --public --license apache-2.0 --evaluation results.json
  hdlm push runs/book me/my-model --layout published --branch as-published
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hdlm.cli._models import add_checkpoint, open_checkpoint
from hdlm.cli._options import add_json, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to send, where to, and who may see it."""
    add_checkpoint(parser)
    parser.add_argument("repository", metavar="REPO", help="owner/name; made if there is none")
    parser.add_argument("--public", action="store_true", help="let everybody see it (default: private)")
    parser.add_argument("--dry-run", action="store_true", help="show what would be sent, and send nothing")
    parser.add_argument(
        "--layout", choices=("hdlm", "published"), default="hdlm", help="of the files (default: %(default)s)"
    )
    parser.add_argument(
        "--hyperschedule",
        type=int,
        metavar="N",
        help="for the published layout: which of the checkpoint's to name, counted from 0 (default: 0)",
    )
    parser.add_argument("--branch", help="branch to send to, made if there is none (default: the main one)")
    parser.add_argument(
        "--license", default="mit", help="licence of the weights, for the model card (default: %(default)s)"
    )
    parser.add_argument(
        "--evaluation",
        type=Path,
        metavar="FILE",
        help="results for the model card: a JSON table of names and numbers",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Send, or show what would be sent."""
    from hdlm.sharing.push import push_to_hub

    if args.hyperschedule is not None and args.layout != "published":
        raise ValueError("--hyperschedule is for --layout published; the layout hdlm names all of them.")
    named = {} if args.hyperschedule is None else {"hyperschedule": args.hyperschedule}
    evaluation = None if args.evaluation is None else _results(args.evaluation)
    shared = push_to_hub(
        open_checkpoint(args),
        args.repository,
        private=not args.public,
        layout=args.layout,
        dry_run=args.dry_run,
        revision=args.branch,
        licence=args.license,
        evaluation=evaluation,
        **named,
    )
    if args.json:
        print_json(
            {
                "repository": shared.repo_id,
                "private": shared.private,
                "files": dict(shared.files),
                "url": shared.url,
                "card": shared.card,
            }
        )
        return 0
    print(shared)
    if args.dry_run:
        print(f"\nREADME.md:\n\n{shared.card}")
    return 0


def _results(path: Path) -> dict[str, Any]:
    """The table in a file of results.

    Raises:
        ValueError: if it holds no JSON table.
    """
    import json

    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--evaluation {path} is no JSON: {error}.") from error
    if not isinstance(results, dict):
        raise ValueError(
            f"--evaluation {path} must hold a table of names and numbers; got {type(results).__name__}."
        )
    return results
