"""Serve models with the API of OpenAI: completions, chats and texts with gaps.

Without CHECKPOINT the model that ships with hdlm is served. In a browser, the address is a playground that shows texts
while they are written. See docs/serving.md.

Examples:
  hdlm serve                                        the shipped model, on http://127.0.0.1:8000
  hdlm serve runs/first runs/second --port 9000
  HDLM_API_KEY=secret hdlm serve runs/first --host 0.0.0.0
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hdlm.cli._models import ANY_MODEL, LOADING, add_loading, open_checkpoint, shipped
from hdlm.cli._options import Options, add_device, chosen_device
from hdlm.cli._streams import say

if TYPE_CHECKING:
    from hdlm.serve.models import ServedModel

OPTIONS = Options("hdlm.serve.options:ServeOptions")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the models and the options of the server."""
    parser.add_argument(
        "checkpoints",
        metavar="CHECKPOINT",
        nargs="*",
        help=f"{ANY_MODEL}; NAME=CHECKPOINT gives the model another name",
    )
    group = parser.add_argument_group("host, limits and safety")
    OPTIONS.add(group, "host")
    OPTIONS.add(group, "port", type=int)  # 0 is a port as well: any free one
    OPTIONS.add(group, *(name for name in OPTIONS.names if name not in ("host", "port")))
    parser.add_argument(
        "--chat-template", type=Path, metavar="FILE", help="Jinja template of chats for models that have none"
    )
    add_device(parser)
    LOADING.add(parser, "dtype", choices=("float32", "bfloat16"))
    add_loading(parser)


def run(args: argparse.Namespace) -> int:
    """Load the models and serve them."""
    from hdlm.serve.run import bound_socket, run_server

    args.api_key = args.api_key or os.environ.get("HDLM_API_KEY") or None
    options = OPTIONS.read(args)
    bound = bound_socket(options)
    device = chosen_device(args.device, args.threads)
    names = args.checkpoints or shipped()[:1]
    models = [_open(args, name, str(device)) for name in names]
    if len({model.name for model in models}) < len(models):
        raise ValueError("Two models have one name: write NAME=CHECKPOINT.")
    where = f"[{options.host}]" if ":" in options.host else options.host
    say(f"serving {', '.join(model.name for model in models)} on http://{where}:{bound.getsockname()[1]}")
    run_server(models, options, bound)
    return 0


def _open(args: argparse.Namespace, word: str, device: str) -> ServedModel:
    """A model, ready for generation."""
    from hdlm.serve.models import ServedModel, read_chat_template

    name, _, source = word.rpartition("=")
    checkpoint = open_checkpoint(source, LOADING.values(args), device, args.dtype)
    checkpoint.network.speed_up(batch_invariant=True)
    folder = Path(source)
    template = read_chat_template(folder) if folder.is_dir() else None
    if template is None and args.chat_template is not None:
        template = args.chat_template.read_text(encoding="utf-8")
    return ServedModel(name or folder.name, checkpoint, template, int(time.time()))
