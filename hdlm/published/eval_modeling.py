"""`hdlm/eval_modeling.py`: measure the likelihood of text under a model.

It writes `results.json`: for each data set the document of `hdlm.evaluation.records.protocol`, which holds every number
and the settings for measuring it again. The file is updated while the program runs: the same command resumes after an
interruption, and results of other data sets under this checkpoint stay. A failed measurement appears in it with its
reason, never as a number. The exit status is 1 if a requested data set could not be measured, although all other data
sets are measured; otherwise it is 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hdlm.atomic import NotKeptError, check_folder
from hdlm.data import NAMED
from hdlm.evaluation.likelihood.evaluate import LikelihoodOptions, likelihood_document
from hdlm.evaluation.records.protocol import read_result
from hdlm.published.eval_common import check_counts, load_model, parser, with_tokenizer, write_json

__all__ = ["eval_modeling"]


def eval_modeling(arguments: Sequence[str]) -> int:
    """Measure the likelihood of data sets; returns the exit status."""
    args = _arguments(arguments)
    names = [name for name in (args.dataset, args.valid_dataset, *args.datasets) if name]
    if not names:
        raise ValueError(f"name a data set to measure: --dataset {' or '.join(NAMED)}, a file or a folder.")
    print(f"measuring {', '.join(names)} under {args.checkpoint_path}", file=sys.stderr)
    checkpoint = with_tokenizer(args, load_model(args))
    options = LikelihoodOptions(
        data_dir=args.data_dir,
        length=args.length,
        bound=args.bound,
        replicates=args.monte_carlo_timesteps,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    path, model = args.work_dir / "results.json", str(args.checkpoint_path)
    before = _before(path, model)
    results: dict[str, Any] = {}

    def keep(name: str, document: dict[str, Any]) -> None:
        results[name] = document
        write_json(path, {"checkpoint": model, "datasets": {**before, **results}})

    for name in dict.fromkeys(names):
        try:
            document = likelihood_document(
                checkpoint,
                name,
                options,
                model=model,
                weights=args.weights,
                before=before.get(name),
                keep=lambda document, name=name: keep(name, document),  # type: ignore[misc]
                progress=sys.stderr.isatty(),
            )
            keep(name, document)
        except NotKeptError:
            raise
        except (ValueError, OSError) as error:
            keep(name, {"failed": " ".join(str(error).split())})
    _print_table(results)
    print(f"results: {path}")
    return int(any("failed" in result for result in results.values()))


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    options = parser("hdlm/eval_modeling.py", "Measure an upper bound on the perplexity of data sets.")
    options.add_argument("--work_dir", type=Path, required=True, help="folder for results.json")
    for option in ("--dataset", "--valid_dataset"):
        options.add_argument(option, help=f"a data set: {', '.join(NAMED)}, a file or a folder")
    options.add_argument("--datasets", nargs="+", default=[], help="several data sets, like --dataset")
    options.add_argument("--batch_size", type=int, default=16, help="windows in a pass (default: 16)")
    options.add_argument("--length", type=int, help="tokens in a window (default: the model's context)")
    options.add_argument(
        "--monte_carlo_timesteps",
        type=int,
        default=100,
        help="independent estimates of each window; fewer are faster and less precise (default: 100)",
    )
    options.add_argument(
        "--bound",
        choices=("absorbing", "hybrid"),
        help="bound to measure (default: absorbing, that of the paper; hybrid if the noise does not end in masks)",
    )
    options.add_argument(
        "--ngpus", type=int, choices=(1,), default=1, help="must be 1: evaluation runs on one device"
    )
    options.add_argument(
        "--single_gpu", action="store_true", help="has no effect: evaluation always runs on one device"
    )
    args = options.parse_args(arguments)
    check_counts(args, "batch_size", "length", "monte_carlo_timesteps")
    check_folder(args.work_dir, "results.json")
    return args


def _before(path: Path, checkpoint: str) -> dict[str, Any]:
    """Earlier results under this checkpoint, by data set."""
    document = read_result(path) if path.is_file() else {}
    datasets = document.get("datasets")
    return dict(datasets) if isinstance(datasets, dict) and document.get("checkpoint") == checkpoint else {}


def _print_table(results: dict[str, Any]) -> None:
    print(
        f"{'data set':26} {'tokens':>9} {'bound':>10} {'perplexity':>22} {'bits/token':>11} {'bits/byte':>10}"
    )
    for name, result in results.items():
        if "failed" in result:
            print(f"{name:26} not computed: {result['failed']}")
            continue
        result = result["result"]
        error = result["perplexity_error"]
        perplexity = f"{result['perplexity']:.3f}" + ("" if error is None else f" ± {error:.3f}")
        print(
            f"{name:26} {result['num_tokens']:9,} {result['bound']:>10} {perplexity:>22} "
            f"{result['bits_per_token']:11.4f} {result['bits_per_byte']:10.4f}"
        )
