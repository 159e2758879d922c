"""Write text with a model: without a prompt, after a prompt, or in the gaps of a text; or correct a text.

CHECKPOINT is a folder that `hdlm train` wrote, the name of a model that ships with hdlm (`hdlm info` lists them), or a
checkpoint in a published format: a folder, a file, a run or a hub id (see docs/checkpoints.md).

Examples:
  hdlm sample runs/first --prompt "And the LORD said" --algorithm acs --eta 0.1
  hdlm sample runs/first --num 8 --temperature 0.8 --top-p 0.9 --seed 3 --json
  hdlm sample runs/first --infill "The [MASK] of the [MASK:3] was great."
  hdlm sample runs/first --correct "In the beginning Bod created the heaven." --algorithm doubt --replay
  hdlm sample runs/first --hyperschedule flat --steps 64 --length 64
  hdlm sample runs/first --prompt "In the beginning" --replay        watch it being written
  hdlm sample runs/first --prompt "In the beginning" --trace trace.json   for `hdlm view trace.json`
  hdlm sample runs/first --prompt "In the beginning" --stream --stop "."
  hdlm sample runs/first --num 8 --batch-size 4 --explain
  hdlm sample runs/first --num 1000 -o samples.jsonl                 the same command resumes after a kill
  accelerate launch --cpu --num_processes 2 -m hdlm sample runs/first --num 1000 -o samples.jsonl --device cpu
  hdlm sample runs/first --hyperschedule flat --steps 8 --grid cosine
  hdlm sample runs/first --hyperschedule flat --steps 64 --approximate-cache all:4 --explain
  hdlm sample GSAI-ML/LLaDA-8B-Base --gen-length 64 --block-length 32 --steps 64 --remasking low_confidence
  hdlm sample hdlm-group/hdlm-base-epsilon-0.01 --prompt "The future" --tokenizer gpt2

Algorithms: original (ancestral), exact, acs (adaptive correction), doubt, gibbs, remask, remask_adhoc_shuffle, remdm,
remdm_rescale, remdm_confidence, remdm_loop, analytic, euler, first_hitting, confidence, threshold, factor, entropy,
joint_threshold, entropy_renoising, speculative (drafts words in parallel and verifies them causally).
Rules by their published names: low_confidence, low_confidence_static, low_confidence_dynamic, sequential,
maskgit_plus, topk_margin, neg_entropy, diffugpt, diffusion_gemma.
The same seed gives the same text for every --batch-size. Passage k does not depend on --num.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdlm.cli._models import LOADING, add_checkpoint, open_checkpoint
from hdlm.cli._options import (
    Options,
    add_device,
    add_json,
    chosen_device,
    named_device,
    print_json,
    set_threads,
    whole_number,
)
from hdlm.cli._outputs import FILE, KEPT_FILE
from hdlm.progress import share_bar

if TYPE_CHECKING:
    import torch

    from hdlm.checkpoint import Checkpoint
    from hdlm.generation import Passage, Settings
    from hdlm.generation.recording import TraceDocument
    from hdlm.sampling import ApproximateCache

SETTINGS = Options("hdlm.generation.settings:Settings")
OTHERS = Options("hdlm.generation.other_names:OtherNames")
DRAWING = Options(
    "hdlm.generation.write:write",
    only=("prompt", "num", "batch_size", "seed"),
    otherwise="it is an object, which other flags describe",
)
RECORDING = Options(
    "hdlm.generation.recording:record",
    only=("alternatives", "transformed"),
    otherwise="it is an object, or other options describe it",
)
"""Options of traces."""
SINGLE = ("infill", "correct", "json", "trace", "replay", "stream", "explain")
"""Options that apply only to printed passages."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the samples and the settings."""
    add_checkpoint(parser)
    text = parser.add_mutually_exclusive_group()
    DRAWING.add(text, "prompt", help="text to begin with")
    text.add_argument("--infill", help="text with gaps: [MASK] is one token, [MASK:5] five")
    text.add_argument("--correct", metavar="TEXT", help="text whose wrong words are to be replaced")
    parser.add_argument(
        "--noise",
        type=float,
        help="noise fraction at which --correct begins (default: 0.5, or where the model expects 5%% wrong words)",
    )
    DRAWING.add(parser, "num", flags=("--num", "--num-sequences"))
    parser.add_argument(
        "-o",
        "--output",
        type=KEPT_FILE,
        metavar="FILE",
        help="file of JSON lines; each passage is saved when it is written, and the same command resumes the file",
    )
    DRAWING.add(parser, "batch_size")
    SETTINGS.add(parser.add_argument_group("how to write"))
    OTHERS.add(parser.add_argument_group("options by the names of other tools"))
    DRAWING.add(parser, "seed")
    add_device(parser)
    add_json(parser)
    _add_fast(parser.add_argument_group("how fast (what is exact is on by default)"))
    parser.add_argument("--stream", action="store_true", help="print text as soon as it is settled")
    parser.add_argument("--replay", action="store_true", help="show the steps that wrote the first passage")
    _add_trace(parser.add_argument_group("what to record of the steps"))


def _add_trace(group: argparse._ActionsContainer) -> None:
    """Declare the options of traces."""
    group.add_argument(
        "--trace",
        nargs="?",
        const=True,
        type=FILE,
        metavar="FILE",
        help="write every change with its probabilities to FILE, for `hdlm view`; without FILE it is part of --json",
    )
    RECORDING.add(group, "alternatives", type=whole_number)
    RECORDING.add(group, "transformed")


def _add_fast(fast: argparse._ActionsContainer) -> None:
    """Declare the options for stopping and for faster generation."""
    fast.add_argument(
        "--explain",
        action="store_true",
        help="print which fast paths were taken, which were exact, and the number of function evaluations",
    )
    fast.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end a passage before this text; may be given again",
    )
    fast.add_argument(
        "--stop-at-end", action="store_true", help="end a passage at the token that ends a text"
    )
    fast.add_argument(
        "--approximate-cache",
        type=_approximate,
        metavar="[all:]K",
        help="approximate cache, which changes logits. all:K: a call computes only positions that are read or have "
        "changed, and all positions every K calls. K alone: for models with context=full, keep keys and values of "
        "settled positions, and compute them again every K calls",
    )
    LOADING.add(
        fast,
        "dtype",
        choices=("float32", "bfloat16"),
        help="precision of the weights; bfloat16 halves what is read, and changes logits (default: %(default)s)",
    )
    fast.add_argument(
        "--compile", action="store_true", help="compile the network first, up to a minute: for long runs"
    )
    fast.add_argument(
        "--slots",
        type=whole_number,
        metavar="N",
        default=0,
        help="number of sequences in static buffers, replayed as graphs on CUDA (default: %(default)s, off)",
    )


def _approximate(text: str) -> tuple[int, bool]:
    """`K` or `all:K`: the refresh interval, and whether unsettled positions are cached."""
    every = text.removeprefix("all:")
    if not every.isdecimal() or int(every) < 1:
        raise argparse.ArgumentTypeError(f"must be K or all:K, with K at least 1, got {text!r}")
    return int(every), every != text


def run(args: argparse.Namespace) -> int:
    """Write passages, and print them or save them in a file."""
    from hdlm.sampling import ApproximateCache

    settings = read_settings(args)
    approximate = None if args.approximate_cache is None else ApproximateCache(*args.approximate_cache)
    return (_print if args.output is None else _keep)(args, settings, approximate)


def read_settings(args: argparse.Namespace) -> Settings:
    """The settings that the flags describe; a grid may be a file of `hdlm tune`."""
    settings: Settings = SETTINGS.read(args)
    if settings.grid is None:
        return settings
    from hdlm.evaluation.likelihood.grids import grid_text

    return replace(settings, grid=grid_text(settings.grid, settings.steps))


def _open(args: argparse.Namespace, device: torch.device) -> Checkpoint:
    """The model, ready for generation."""
    checkpoint = open_checkpoint(args.checkpoint, LOADING.values(args), device, args.dtype)
    checkpoint.network.speed_up(compiled=args.compile, slots=args.slots)
    return checkpoint


def _keep(args: argparse.Namespace, settings: Settings, approximate: ApproximateCache | None) -> int:
    """Write passages into the file; if it exists, only the missing ones.

    Raises:
        ValueError: If an option applies only to printed passages, or the file holds samples with other settings.
    """
    from hdlm.distributed import Processes
    from hdlm.evaluation.generation.samples import (
        draw_samples,
        num_evaluations,
        tokens_per_forward,
        tokens_per_second,
    )
    from hdlm.generation import Ending
    from hdlm.generation.other_names import with_other_names

    for name in SINGLE:
        if getattr(args, name):
            raise ValueError(f"--{name} is for passages that are printed: leave --output out.")
    processes, own_device = Processes.launched(cpu=args.device == "cpu")
    device = chosen_device(args.device, args.threads) if own_device is None else own_device
    checkpoint = _open(args, device)
    settings = with_other_names(settings, OTHERS.read(args), checkpoint)
    with share_bar("writing", shown=processes.is_main and sys.stderr.isatty()) as bar:
        samples = draw_samples(
            checkpoint,
            settings,
            **DRAWING.values(args),
            ending=Ending(args.stop_at_end, tuple(args.stop)),
            approximate=approximate,
            device=device,
            keep=args.output,
            processes=processes,
            watch=lambda done, share: bar(share, f"writing passage {done + 1} of {args.num}"),
        )
    if processes.is_main:
        forward = tokens_per_forward(samples)
        pace = "" if forward is None else f"{forward:.2f} tokens per forward, "
        print(
            f"{args.output}: {len(samples)} passages; {pace}{num_evaluations(samples):.1f} calls a batch, "
            f"{tokens_per_second(samples):.0f} tokens a second in each process"
        )
    return 0


def _print(args: argparse.Namespace, settings: Settings, approximate: ApproximateCache | None) -> int:
    """Write passages and print them.

    Raises:
        ValueError: If options do not go together.
    """
    from hdlm.generation import BLANK, Ending, write
    from hdlm.generation.correction import matching_noise
    from hdlm.generation.other_names import with_other_names
    from hdlm.generation.progress import steps_bar
    from hdlm.generation.recording import record

    infilling = args.infill is not None
    whole = args.infill if infilling else args.correct
    if infilling and not BLANK.search(args.infill):
        raise ValueError("--infill needs a gap: write [MASK] for one token, [MASK:5] for five.")
    if args.correct is not None and not args.correct.strip():
        raise ValueError("--correct needs a text whose wrong words are to be replaced.")
    if args.noise is not None and args.correct is None:
        raise ValueError("--noise is for a text to correct: add --correct TEXT, or leave --noise out.")
    if args.trace is True and not args.json:
        raise ValueError("--trace without a file is part of what --json prints: add --json, or name a file.")
    if args.stream and (args.num > 1 or args.json or args.replay):
        raise ValueError(
            "--stream prints one passage while it is written: leave --num, --json and --replay out."
        )
    checkpoint = _open(args, device := named_device(args.device))
    settings = with_other_names(settings, OTHERS.read(args), checkpoint)
    set_threads(
        device, args.threads, flops=_flops(checkpoint, args.num * (settings.length or checkpoint.length))
    )
    if args.correct is not None and args.noise is None:
        args.noise = matching_noise(checkpoint.denoiser.process)
    trace: TraceDocument | None = None
    with steps_bar("writing", shown=not (args.json or args.stream) and sys.stderr.isatty()) as tick:
        how = {
            **DRAWING.values(args),
            **({} if whole is None else {"prompt": whole}),
            "settings": settings,
            "noise": args.noise,
            "ending": Ending(args.stop_at_end, tuple(args.stop)),
            "approximate": approximate,
            "watch": tick,
            "stream": _print_piece if args.stream else None,
        }
        if args.replay or args.trace:
            passages, trace = record(checkpoint, **how, **RECORDING.values(args))
        else:
            passages = write(checkpoint, **how)
    if trace is not None and isinstance(args.trace, Path):
        trace.save(args.trace)
        print(f"wrote {args.trace}", file=sys.stderr)
    if args.explain:
        from hdlm.generation.explanation import explain

        facts = {"infilling": whole is not None, "in_step": args.batch_size == 1, "compiled": args.compile}
        print(explain(checkpoint, settings, passages, approximate=approximate, **facts), file=sys.stderr)
    if args.json:
        print_json(_document(args, settings, passages, trace))
    elif args.stream:
        print()
    else:
        _print_passages(args, passages, trace)
    return 0


def _flops(checkpoint: Checkpoint, tokens: int) -> float:
    """FLOPs of one pass over the tokens: two for each weight and token."""
    return 2.0 * tokens * sum(weight.numel() for weight in checkpoint.network.parameters())


def _print_piece(_: int, piece: str) -> None:
    print(piece, end="", flush=True)


def _print_passages(args: argparse.Namespace, passages: list[Passage], trace: TraceDocument | None) -> None:
    """Print passages, the first one as a replay if requested."""
    if args.replay and trace is not None:
        from hdlm.view.replay import play, replay_of

        play({trace.title: replay_of(trace)})
        passages = passages[1:]
    for number, passage in enumerate(passages):
        if number or args.replay:
            print("\n---\n")
        print(passage.text)


def _document(
    args: argparse.Namespace, settings: Settings, passages: list[Passage], trace: TraceDocument | None
) -> dict[str, Any]:
    changes = {} if args.trace is None or trace is None else {"changes": list(map(asdict, trace.changes))}
    return {
        "checkpoint": args.checkpoint,
        "seed": args.seed,
        "settings": asdict(settings),
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
