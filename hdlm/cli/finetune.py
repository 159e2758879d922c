"""Train a model further, or turn a causal language model into a diffusion model.

The network, the tokenizer and every piece of the model are kept unless --recipe sets others. With --to diffusion, a
causal model (Llama, Qwen2, Qwen3, GPT-2 or one in their layout) gets a mask: a token that its tokenizer reserves, or
else the mean of the rows of its embedding. The default recipe then is `diffusion`: the outputs still predict the next
token, and the blocks that are predicted together grow.

Examples:
  hdlm finetune Qwen/Qwen3-0.6B --to diffusion --text novels/ --output runs/converted --minutes 60
  hdlm finetune gpt2-folder --to diffusion --recipe diffugpt --text novels/ --output runs/converted --steps 10000
  hdlm finetune runs/book --text sequel.txt --output runs/sequel --minutes 2
  hdlm finetune gpt2-folder --output runs/converted --resume

Published recipes of conversions: diffugpt, dream, sdar, fast_dllm_v2, idlm, nbdiff.
"""

from __future__ import annotations

import argparse

from hdlm.cli._models import ANY_MODEL
from hdlm.cli._options import choices
from hdlm.cli.train import add_run, train_by_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, what it becomes, and the options of a run."""
    parser.add_argument("start", metavar="MODEL", help=ANY_MODEL)
    parser.add_argument(
        "--to",
        choices=choices("hdlm.training.conversion:Target"),
        help="what a causal model is converted to (default: the model remains what it is)",
    )
    add_run(parser)


def run(args: argparse.Namespace) -> int:
    """Train, and print a summary."""
    return train_by_recipe(args, args.to, continues=True)
