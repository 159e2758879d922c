"""Write text with a model: from nothing, from a prompt, or into the gaps of a text.

CHECKPOINT is a folder that `hdlm train` wrote, the name of a model that ships with hdlm (`hdlm info` lists them), or a
checkpoint in a published format: a folder, a file, a run or a hub id (see docs/checkpoints.md).

Examples:
  hdlm sample runs/first --prompt "And the LORD said" --algorithm acs --eta 0.1
  hdlm sample runs/first --num 8 --temperature 0.8 --top-p 0.9 --seed 3 --json
  hdlm sample runs/first --infill "The [MASK] of the [MASK:3] was great."
  hdlm sample runs/first --hyperschedule flat --steps 64 --length 64
  hdlm sample runs/first --prompt "In the beginning" --replay        watch it being written
  hdlm sample runs/first --prompt "In the beginning" --stream --stop "."
  hdlm sample runs/first --num 8 --batch-size 4 --explain
  hdlm sample runs/first --num 1000 -o samples.jsonl                 the same command goes on after a kill
  accelerate launch --cpu --num_processes 2 -m hdlm sample runs/first --num 1000 -o samples.jsonl --device cpu
  hdlm sample runs/first --hyperschedule flat --steps 8 --grid cosine
  hdlm sample runs/first --hyperschedule flat --steps 64 --approximate-cache all:4 --explain
  hdlm sample hdlm-group/hdlm-base-epsilon-0.01 --prompt "The future" --tokenizer gpt2

Algorithms: original (ancestral), exact, acs (adaptive correction), gibbs, remask, remask_adhoc_shuffle, remdm,
remdm_rescale, remdm_confidence, remdm_loop, analytic, euler, first_hitting, confidence, threshold, entropy.
The same seed gives the same text, whatever --batch-size; passage k is the same however many are asked for.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from hdlm.cli._models import add_checkpoint, open_fast
from hdlm.cli._options import (
    add_device,
    add_json,
    add_seed,
    at_least_one,
    device_option,
    print_json,
    whole_number,
)
from hdlm.cli._outputs import KEPT_FILE
from hdlm.cli._replay import play_replays, replay_of
from hdlm.cli._sample_many import write_many

if TYPE_CHECKING:
    from hdlm.checkpoint import Checkpoint
    from hdlm.generation import Passage, Settings
    from hdlm.sampling import Frame, Trace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to write, how, and how much."""
    add_checkpoint(parser)
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--prompt", default="", help="text to begin with")
    text.add_argument("--infill", help="text with gaps: [MASK] is one token, [MASK:5] five")
    parser.add_argument(
        "--num",
        "--num-sequences",
        type=at_least_one,
        default=1,
        help="how many passages (default: %(default)s)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=KEPT_FILE,
        metavar="FILE",
        help="JSON lines, kept as they come; the command goes on with it",
    )
    parser.add_argument("--batch-size", type=at_least_one, help="how many at a time (default: all)")
    add_settings(parser)
    add_seed(parser)
    add_device(parser)
    add_json(parser)
    fast = parser.add_argument_group("how fast (what is exact is on by default)")
    fast.add_argument(
        "--explain",
        action="store_true",
        help="say which fast paths were taken, which were exact, and the NFE",
    )
    fast.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text")
    fast.add_argument("--stop-at-end", action="store_true", help="end at the token that ends a text")
    fast.add_argument(
        "--approximate-cache",
        type=_approximate,
        metavar="[all:]K",
        help="changes logits. all:K: in a call compute only what is read or has changed, and all anew every K calls; "
        "K alone: for networks that see both ways, remember settled text, and compute it anew every K calls",
    )
    fast.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="precision of the weights; bfloat16 halves what is read, and changes logits (default: %(default)s)",
    )
    fast.add_argument(
        "--compile",
        action="store_true",
        help="compile the network first, up to a minute: for long runs",
    )
    fast.add_argument(
        "--slots",
        type=whole_number,
        metavar="N",
        default=0,
        help="sequences in static buffers, replayed as graphs on CUDA (default: 0, off)",
    )
    parser.add_argument("--stream", action="store_true", help="print text as it settles")
    parser.add_argument("--replay", action="store_true", help="show how the first passage came to be")
    parser.add_argument(
        "--trace", action="store_true", help="with --json: every change, its step and its reason"
    )


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options of `hdlm.generation.Settings`; read them with `settings_of`."""
    how = parser.add_argument_group("how to write")
    how.add_argument("--algorithm", default="acs", help="the sampler (default: %(default)s)")
    how.add_argument("--eta", type=float, default=0.05, help="strength of corrections (default: %(default)s)")
    how.add_argument(
        "--hyperschedule",
        metavar="FAMILY",
        help="autoregressive, flat, block, slide or wave (default: as the checkpoint says)",
    )
    how.add_argument("--width", type=at_least_one, help="positions that are written together")
    how.add_argument("--steps", type=at_least_one, help="steps that a position takes from noise to word")
    how.add_argument(
        "--grid",
        metavar="GRID",
        help="when the steps are: uniform (default), cosine, power:P, times as 0.2,0.6,1, or a file of `hdlm tune`",
    )
    how.add_argument(
        "--length", type=at_least_one, help="positions on the canvas (default: the model's context)"
    )
    how.add_argument(
        "--temperature", type=float, default=1.0, help="below 1 plays safe (default: %(default)s)"
    )
    how.add_argument("--top-k", type=at_least_one, help="draw from the K likeliest words only")
    how.add_argument(
        "--top-p", type=float, help="draw from the likeliest words that make up this probability"
    )
    how.add_argument("--min-p", type=float, help="drop words this much less likely than the likeliest")
    how.add_argument(
        "--repetition-penalty", type=float, default=1.0, help="above 1 avoids words already there"
    )
    how.add_argument(
        "--guidance", type=float, default=0.0, help="follow the prompt more closely (default: 0, off)"
    )


def _approximate(text: str) -> tuple[int, bool]:
    """`K` or `all:K`: when to refresh, and whether positions that are being written are remembered."""
    every = text.removeprefix("all:")
    if not every.isdecimal() or int(every) < 1:
        raise argparse.ArgumentTypeError(f"must be K or all:K, with K at least 1, got {text!r}")
    return int(every), every != text


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings that the options describe."""
    from dataclasses import fields

    from hdlm.generation import Settings

    values = {option.name: getattr(args, option.name) for option in fields(Settings)}
    if args.grid is not None:
        from hdlm.evaluation.likelihood.grids import grid_text

        values["grid"] = grid_text(args.grid, args.steps)
    return Settings(**values)


def run(args: argparse.Namespace) -> int:
    """Write and print; or keep in a file."""
    if args.output is not None:
        return write_many(args, settings_of(args))
    from hdlm.generation import BLANK, Ending, write
    from hdlm.generation.progress import steps_bar
    from hdlm.sampling import ApproximateCache, Trace

    if args.infill is not None and not BLANK.search(args.infill):
        raise ValueError("--infill needs a gap: write [MASK] for one token, [MASK:5] for five.")
    if args.trace and not args.json:
        raise ValueError("--trace is part of what --json prints: add --json, or look at --replay.")
    if args.stream and (args.num > 1 or args.json or args.replay):
        raise ValueError("--stream prints one passage as it comes: leave --num, --json and --replay out.")
    device = device_option(args)
    checkpoint = open_fast(args, device)
    trace = Trace(checkpoint.vocabulary.mask_id)
    ending = Ending(args.stop_at_end, tuple(args.stop))
    with steps_bar("writing", shown=not (args.json or args.stream) and sys.stderr.isatty()) as tick:

        def watch(frame: Frame) -> None:
            if args.replay or args.trace:
                trace(frame)
            tick(frame)

        passages = write(
            checkpoint,
            args.infill if args.infill is not None else args.prompt,
            settings_of(args),
            num=args.num,
            batch_size=args.batch_size,
            seed=args.seed,
            ending=ending,
            approximate=args.approximate_cache and ApproximateCache(*args.approximate_cache),
            device=device,
            watch=watch,
            stream=_print_piece if args.stream else None,
        )
    if args.explain:
        print(explanation(checkpoint, args, passages), file=sys.stderr)
    if args.json:
        print_json(_document(args, passages, trace))
        return 0
    if args.stream:
        print()
        return 0
    if args.replay:
        play_replays({f"{args.algorithm}, seed {args.seed}": replay_of(checkpoint, trace, 0)})
        passages = passages[1:]
    for number, passage in enumerate(passages):
        if number or args.replay:
            print("\n---\n")
        print(passage.text)
    return 0


def _print_piece(_: int, piece: str) -> None:
    print(piece, end="", flush=True)


def _document(args: argparse.Namespace, passages: list[Passage], trace: Trace) -> dict[str, Any]:
    from dataclasses import asdict

    changes = {"changes": [asdict(change) for change in trace.changes]} if args.trace else {}
    return {
        "checkpoint": args.checkpoint,
        "seed": args.seed,
        "settings": asdict(settings_of(args)),
        "approximate_cache": args.approximate_cache,
        "num_evaluations": passages[0].num_evaluations,
        "passages": [
            {
                "text": p.text,
                "tokens": p.tokens,
                "given": p.given,
                "num_evaluations": p.evaluations,
                "num_computed": p.computed,
            }
            for p in passages
        ],
        **changes,
    }


def explanation(checkpoint: Checkpoint, args: argparse.Namespace, passages: list[Passage]) -> str:
    """Which fast paths were taken, which of them were exact, and the number of function evaluations."""
    from statistics import mean

    from hdlm.generation import planned
    from hdlm.sampling import exactness

    infilling = args.infill is not None
    length = len(passages[0].tokens) if infilling else args.length or checkpoint.length
    plan = planned(checkpoint, settings_of(args), length, infilling=infilling).hyperschedule
    precision = "exact" if args.dtype == "float32" else "APPROXIMATE, logits change in the third digit"
    pace = "each sequence goes at its own pace, all share calls of the network: exact"
    apart = len(passages) > 1 and args.batch_size != 1 and not args.guidance
    evaluations = mean(passage.evaluations for passage in passages)
    computed = sum(passage.computed for passage in passages) / max(sum(p.evaluations for p in passages), 1)
    lines = {
        "law": f"{args.algorithm}, {exactness(args.algorithm, checkpoint.denoiser.process, args.eta)}",
        "reads": "vocabulary projection, softmax and draw only where a word may change: exact",
        "weights": f"{args.dtype}: {precision}{_packed(checkpoint)}",
        "passes": "compiled: exact" if args.compile else "not compiled; --compile is for long runs",
        "buffers": _buffers(checkpoint),
        "draws": "float64 sums in two levels: exact down to the tail",
        "skips": "the network is not asked in steps that read nothing: exact",
        "answers": _answers(checkpoint),
        "cache": _cache(checkpoint, args),
        "window": f"{computed:.1f} positions computed in a call, of {length}",
        "batch": pace if apart else "one sequence at a time, or all in step",
        "NFE": f"{passages[0].num_evaluations} calls for {len(passages)}; {evaluations:.1f} a sequence, of "
        f"{plan.num_steps} steps",
    }
    return "\n".join(f"{name:>7}: {text}" for name, text in lines.items())


def _answers(checkpoint: Checkpoint) -> str:
    """Whether an answer of the network is used again while the tokens stay the same."""
    if checkpoint.denoiser.noise_dependence == "none":
        return "used again while the tokens stay the same: exact, as no noise is an input of the network"
    return "computed in every step that reads, as the noise is an input of the network"


def _cache(checkpoint: Checkpoint, args: argparse.Namespace) -> str:
    """What is remembered from call to call, and whether that is exact."""
    from hdlm.regime import settled_lasts

    lasts = settled_lasts(checkpoint.context, checkpoint.denoiser.noise_dependence)
    settled = f"settled positions are computed once: exact, as context is {checkpoint.context}"
    if args.approximate_cache is None:
        sees = "settled positions see later ones"
        noise = (
            "the noise of the whole sequence is an input at every position, so no key or value stays valid"
        )
        why = sees if checkpoint.context == "full" else noise
        return settled if lasts else f"none, as {why}; --approximate-cache K trades exactness for speed"
    refresh, everything = args.approximate_cache
    if not everything:
        return f"settled positions are remembered, and computed anew every {refresh} calls: APPROXIMATE, logits change"
    return (
        "computed are positions that are read or have changed, and "
        f"{'those not settled' if lasts else 'all'} anew every {refresh} calls: APPROXIMATE, logits change"
    )


def _packed(checkpoint: Checkpoint) -> str:
    """How many weights are kept a second time."""
    from hdlm.network.packed import PackedLinear

    count = sum(isinstance(part, PackedLinear) and part.packs for part in checkpoint.network.modules())
    return f"; {count} matrices packed for few rows: exact but for rounding" if count else ""


def _buffers(checkpoint: Checkpoint) -> str:
    """What static buffers were used for."""
    static = checkpoint.network.static
    if static is None:
        return "grow with the text; --slots N makes them static, for accelerators"
    how = "recorded as CUDA graphs" if static.records else "not recorded, as this is not CUDA"
    return (
        f"static, {static.slots} slots: {static.num_calls} calls, shapes: {len(static.shapes)}, {how}: exact"
    )
