"""Send a checkpoint to the Hugging Face hub, with its model card; the repository is private unless --public is given.

--dry-run shows the files and the card, and does not use the network. The layout `hdlm` is read by hdlm and
transformers, the layout `published` by hdlm and the published code of the paper (see `hdlm export`). Log in with `hf
auth login`, or set HF_TOKEN.

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

from hdlm.cli._models import LOADING, add_checkpoint, open_checkpoint
from hdlm.cli._options import Options, add_json, print_json

PUSH = Options(
    "hdlm.sharing.push:push_to_hub",
    checkpoint="it is the positional CHECKPOINT",
    repo_id="it is the positional REPO",
    revision="--branch names it; --revision is the one to read",
    evaluation="--evaluation names a file of results",
    token="a secret is no argument: huggingface_hub reads HF_TOKEN",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the checkpoint, the repository and its visibility."""
    add_checkpoint(parser)
    parser.add_argument("repository", metavar="REPO", help="owner/name; it is created if it does not exist")
    PUSH.add(parser, "private", flags=("--public",), help="make the repository public (default: private)")
    PUSH.add(parser, "dry_run", "layout")
    parser.add_argument(
        "--hyperschedule",
        type=int,
        metavar="N",
        help="for the published layout: number of the hyperschedule to record, counted from 0 (default: 0)",
    )
    PUSH.add(parser, "revision", flags=("--branch",), dest="branch")
    PUSH.add(parser, "licence", flags=("--license",))
    parser.add_argument(
        "--evaluation",
        type=Path,
        metavar="FILE",
        help="results for the model card: a JSON table of names and numbers",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Upload, or show the files of the upload."""
    from hdlm.sharing.push import push_to_hub

    if args.hyperschedule is not None and args.layout != "published":
        raise ValueError("--hyperschedule is for --layout published; the layout hdlm names all of them.")
    named = {} if args.hyperschedule is None else {"hyperschedule": args.hyperschedule}
    evaluation = None if args.evaluation is None else _results(args.evaluation)
    checkpoint = open_checkpoint(args.checkpoint, LOADING.values(args))
    sent = PUSH.values(args) | named | {"revision": args.branch, "evaluation": evaluation}
    shared = push_to_hub(checkpoint, args.repository, **sent)
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
        ValueError: If the file holds no JSON table.
    """
    import json

    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--evaluation {path} is not JSON: {error}.") from error
    if not isinstance(results, dict):
        raise ValueError(
            f"--evaluation {path} must hold a table of names and numbers; got {type(results).__name__}."
        )
    return results
