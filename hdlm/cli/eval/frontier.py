"""Quality against variety: generative perplexity over entropy, for samplers and models, over temperature or top-p.

Generative perplexity alone can be had by saying little; so can entropy by saying anything. Their frontier cannot: a
sampler is better than another where its curve is lower at the same entropy.

Examples:
  hdlm eval frontier runs/first --algorithm original acs --temperature 0.6 0.8 1.0 --judge models/gpt2 --output f
  hdlm eval frontier runs/a runs/b --top-p 0.8 0.9 0.95 1 --judge gpt2-large --reference wikitext2 --output ab
  hdlm eval frontier runs/first --temperature 0.7 1 --judge kjv-epsilon-4m --num 20 --length 64 --output quick

The folder gets results.json, report.md and frontier.png; every point is kept in points/ when it is done, so the same
command goes on after a kill, and one with more points measures only those. All points have as many samples of the same
length, and one judge. What cannot be measured is in the result with the reason, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdlm.atomic import check_folder, keeping
from hdlm.cli._models import ANY_MODEL, add_reading, open_checkpoint
from hdlm.cli._options import add_device, add_json, add_seed, at_least_one, device_of, json_text, print_json
from hdlm.cli._outputs import Output
from hdlm.cli._progress import share_bar

if TYPE_CHECKING:
    from hdlm.checkpoint import Checkpoint
    from hdlm.evaluation.generation.frontier import Sweep
    from hdlm.evaluation.text import Text
    from hdlm.generation import Settings


FOLDER = Output("folder", ("results.json", "report.md", "frontier.png"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to sweep, for whom, and who judges."""
    parser.add_argument("checkpoint", nargs="+", metavar="CHECKPOINT", help=f"models, each {ANY_MODEL}")
    what = parser.add_argument_group("what to sweep")
    what.add_argument("--algorithm", nargs="+", default=["acs"], help="samplers (default: acs)")
    swept = what.add_mutually_exclusive_group(required=True)
    swept.add_argument(
        "--temperature", nargs="+", type=float, help="temperatures; 1 leaves the model as it is"
    )
    swept.add_argument("--top-p", nargs="+", type=float, help="shares of probability to draw from, in (0, 1]")
    parser.add_argument(
        "--judge",
        required=True,
        metavar="MODEL",
        help="a causal language model, by folder or hub name (gpt2-large, say), or a checkpoint of hdlm",
    )
    parser.add_argument(
        "--reference", metavar="DATA", help="real text, its own point: a data set, file or folder"
    )
    parser.add_argument("--data-dir", type=Path, help="folder of data sets (default: $HDLM_DATA_DIR)")
    how = parser.add_argument_group("how to write")
    how.add_argument("--num", type=at_least_one, default=50, help="samples a point (default: %(default)s)")
    how.add_argument("--length", type=at_least_one, help="tokens in a sample (default: the model's context)")
    how.add_argument("--prompt", default="", help="text that all samples begin with")
    how.add_argument("--eta", type=float, default=0.05, help="strength of corrections (default: %(default)s)")
    how.add_argument(
        "--hyperschedule",
        metavar="FAMILY",
        help="autoregressive, flat, block, slide or wave (default: as the checkpoint says)",
    )
    how.add_argument("--width", type=at_least_one, help="positions that are written together")
    how.add_argument("--steps", type=at_least_one, help="steps that a position takes from noise to word")
    how.add_argument("--batch-size", type=at_least_one, help="samples at a time (default: as many as fit)")
    add_reading(parser)
    add_seed(parser)
    add_device(parser)
    add_json(parser)
    parser.add_argument("--output", type=FOLDER, metavar="FOLDER", required=True, help="for the results")


def run(args: argparse.Namespace) -> int:
    """Sweep, draw, report."""
    from hdlm.evaluation.generation.frontier import MEASURES, Sweep
    from hdlm.evaluation.generation.judges import judges_of
    from hdlm.evaluation.records.protocol import write
    from hdlm.view.frontier import frontier_table, write_frontier

    begin = time.perf_counter()
    device = device_of(args)
    check_folder(args.output / "points")
    models = _models(args)
    (judge,) = judges_of([args.judge], device, offline=args.offline).values()
    if isinstance(judge, str):
        raise ValueError(f"--judge {args.judge}: {judge}")
    folder = args.output / "points"
    sweep = Sweep(folder, judge, args.num, args.seed, args.prompt, args.batch_size, device)
    one = next(iter(models.values()))
    text, data = _reference(args, one)
    curves = _curves(args, sweep, models)
    first = curves[0]["points"][0]
    written = first["length"] - first["num_given"]
    reference = None if text is None else sweep.reference(one, text, written)
    document = _document(args, models) | {
        **judge.noted,
        "data": data,
        "curves": curves,
        "reference": reference,
        "wall_seconds": round(time.perf_counter() - begin, 3),
    }
    with keeping(lambda: json_text(document)):
        write(args.output / "results.json", document)
        write_frontier(args.output, document)
    if args.json:
        print_json(document)
    else:
        print(frontier_table(document))
        print(f"\nresults: {args.output}")
    measured = [point for curve in curves for point in curve["points"]] + ([reference] if reference else [])
    return int(any("failed" in point[measure] for point in measured for measure in MEASURES))


def _models(args: argparse.Namespace) -> dict[str, Checkpoint]:
    """The models by name, all with one tokenizer, for entropy is over tokens.

    Raises:
        ValueError: If they have not, or --length is needed to make their samples alike.
    """
    device = device_of(args)
    models = {
        name: open_checkpoint(argparse.Namespace(**{**vars(args), "checkpoint": name}), device)
        for name in dict.fromkeys(args.checkpoint)
    }
    (first, one), *others = models.items()
    for name, other in others:
        if other.tokenizer != one.tokenizer:
            raise ValueError(
                f"{name} and {first} have different tokenizers: their entropies cannot be compared."
            )
        if args.length is None and other.length != one.length:
            raise ValueError(
                f"{name} writes {other.length} tokens and {first} {one.length}, and entropy depends on it: "
                "give --length."
            )
    return models


def _settings(args: argparse.Namespace, algorithm: str) -> Settings:
    from hdlm.generation import Settings

    names = ("eta", "hyperschedule", "width", "steps", "length")
    return Settings(algorithm=algorithm, **{name: getattr(args, name) for name in names})


def _curves(args: argparse.Namespace, sweep: Sweep, models: dict[str, Checkpoint]) -> list[dict[str, Any]]:
    """Every sampler of every model, at every setting."""
    name, values = ("temperature", args.temperature) if args.top_p is None else ("top_p", args.top_p)
    values = sorted(set(values))
    algorithms = list(dict.fromkeys(args.algorithm))
    total = len(models) * len(algorithms) * len(values)
    done = 0
    curves = []
    with share_bar("writing", shown=not args.json and sys.stderr.isatty()) as bar:

        def watch(_: int, share: float) -> None:
            bar((done + share) / total, f"point {done + 1} of {total}")

        for model, checkpoint in models.items():
            for algorithm in algorithms:
                points = []
                for value in values:
                    settings = replace(_settings(args, algorithm), **{name: value})
                    points.append({name: value, **sweep.point(checkpoint, settings, watch)})
                    done += 1
                curves.append({"model": model, "algorithm": algorithm, "points": points})
    return curves


def _reference(args: argparse.Namespace, checkpoint: Checkpoint) -> tuple[Text | None, dict[str, Any] | None]:
    """Real text, and what text it is."""
    if args.reference is None:
        return None, None
    from hdlm.evaluation.text import find_text, read_text
    from hdlm.generation import tokenizer_of

    source = find_text(args.reference, folder=args.data_dir)
    text = read_text(tokenizer_of(checkpoint), source.corpus.documents())
    return text, source.describe(text)


def _document(args: argparse.Namespace, models: dict[str, Checkpoint]) -> dict[str, Any]:
    """What all points have in common, and what each model is."""
    from hdlm.evaluation.generation.samples import DRAW_DTYPE
    from hdlm.evaluation.generation.scoring import DEFINITIONS
    from hdlm.evaluation.records.protocol import describe

    described = {
        name: describe(one, name, kind="generation", result={}, seed=args.seed, weights=args.weights)
        for name, one in models.items()
    }
    own = ("weights", "weights_sha256", "process", "parameterization", "dtype")
    first = next(iter(described.values()))
    return {
        "kind": "frontier",
        "swept": "temperature" if args.top_p is None else "top_p",
        "num_samples": args.num,
        "length": args.length or next(iter(models.values())).length,
        "prompt": args.prompt,
        "draw_dtype": DRAW_DTYPE,
        "settings": {name: getattr(args, name) for name in ("eta", "hyperschedule", "width", "steps")},
        "models": {name: {key: one[key] for key in own} for name, one in described.items()},
        "definitions": dict(DEFINITIONS),
        **{key: first[key] for key in ("device", "seed", "versions", "tokenizer_sha256")},
    }
