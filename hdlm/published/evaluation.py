"""`hdlm/eval_modeling.py` and `hdlm/eval_generation.py`: how well a model predicts text, and what text it writes.

Both leave `results.json`, in which every number stands beside what it takes to measure it again. What could not be
measured is in it with the reason, never as a number. The exit status is 0 unless something that was asked for by name
(a data set, a judge) could not be had: then it is 1, and everything else has been measured all the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from hdlm import hub
from hdlm.atomic import replacing
from hdlm.checkpoint import Checkpoint
from hdlm.data import NAMED, NamedDataset, Tokenizer, TokenStream, corpus, find_tokenizer, tokenise
from hdlm.evaluation import LikelihoodResult, Progress, evaluate
from hdlm.evaluation.judge import TransformersJudge, generative_perplexity
from hdlm.evaluation.metrics import diversity
from hdlm.generation import tokenizer_of
from hdlm.hyperschedule import AbstractHyperschedule, Table, flat
from hdlm.published import samplers
from hdlm.published.likelihood import bound_of, measurable
from hdlm.published.model import AbstractPublishedModel, pick_device, smart_model_loader
from hdlm.published.score_samplers import get_nar_sampling_fn, get_sar_sampling_fn

__all__ = ["eval_generation", "eval_modeling"]

JUDGE = "gpt2-large"
LOGIT_METHODS: dict[str, Callable[..., Tensor]] = {
    name: getattr(samplers, name)
    for name in ("full_diff", "semi_diff", "full_diff_shifted", "semi_diff_shifted")
}
SCORE_METHODS = {"NAR": get_nar_sampling_fn, "SAR": get_sar_sampling_fn}
REFERENCES = ("ptb", "wikitext103", "lambada")
DEFINITIONS = {
    "entropy": "nats, of the token frequencies of a sample; mean over samples",
    "distinct-n": "different n-grams of token ids over n-grams, all samples together",
    "repetition-4": "1 - different 4-grams over 4-grams of a sample; mean over samples",
    "generative perplexity": "exp(nats / tokens) over all samples, tokens and probabilities those of the judge",
}


def eval_modeling(arguments: Sequence[str]) -> int:
    """Measure the likelihood of data sets; the answer is the exit status."""
    parser = _parser("hdlm/eval_modeling.py", "Measure an upper bound on the perplexity of data sets.")
    parser.add_argument("--work_dir", type=Path, required=True, help="folder for results.json")
    for option in ("--dataset", "--valid_dataset"):
        parser.add_argument(option, help=f"a data set: {', '.join(NAMED)}, a file or a folder")
    parser.add_argument("--datasets", nargs="+", default=[], help="several data sets")
    parser.add_argument("--batch_size", type=int, default=16, help="windows in a pass (default: 16)")
    parser.add_argument("--length", type=int, help="tokens in a window (default: the model's context)")
    parser.add_argument(
        "--monte_carlo_timesteps",
        type=int,
        default=100,
        help="independent estimates of each window; fewer are quicker and less sure (default: 100)",
    )
    parser.add_argument(
        "--bound",
        choices=("absorbing", "hybrid"),
        help="default: absorbing, the paper's; hybrid where noise does not end in masks",
    )
    parser.add_argument("--ngpus", type=int, choices=(1,), default=1, help="evaluation runs on one device")
    parser.add_argument("--single_gpu", action="store_true", help="as it always is")
    args = parser.parse_args(arguments)
    names = [name for name in (args.dataset, args.valid_dataset, *args.datasets) if name]
    if not names:
        raise ValueError(f"name a data set to measure: --dataset {' or '.join(NAMED)}, a file or a folder.")
    print(f"measuring {', '.join(names)} under {args.checkpoint_path}", file=sys.stderr)
    checkpoint = _load(args)
    tokenizer = _tokenizer(args, checkpoint)
    results: dict[str, Any] = {}
    for name in dict.fromkeys(names):
        try:
            text = tokenise(tokenizer, _documents(name, args.data_dir))
            results[name] = _measured(args, checkpoint, text, name).to_dict()
        except (ValueError, OSError) as error:
            results[name] = {"failed": " ".join(str(error).split())}
    _write_json(
        args.work_dir / "results.json",
        {
            "checkpoint": str(args.checkpoint_path),
            "weights": args.weights,
            "part": "test, or what the data set keeps aside instead; text as it is, without detokenisation",
            "datasets": results,
        },
    )
    _print_table(results)
    print(f"results: {args.work_dir / 'results.json'}")
    return int(any("failed" in result for result in results.values()))


def eval_generation(arguments: Sequence[str]) -> int:
    """Write samples and measure them; the answer is the exit status."""
    args = _generation_arguments(arguments)
    print(f"writing {args.num_samples} samples with {args.checkpoint_path}", file=sys.stderr)
    family = "auto" if args.family == "auto" else f"{args.family.removesuffix('_hybrid')}_hybrid"
    model, config, device, _, _ = smart_model_loader(
        args.checkpoint_path, family, args.device, args.config_path, weights=args.weights
    )
    tokenizer = _tokenizer(args, model.checkpoint)
    method, made = _samples(args, model, config, device, tokenizer.vocabulary.bos)
    rows = made.tolist()
    texts = [tokenizer.decode(row) for row in rows]
    measured: dict[str, Any] = {name: asdict(value) for name, value in diversity(rows).items()}
    failed = _judge(args, texts, device, measured)
    references, missing = _references(args, tokenizer, made.shape)
    folder = args.output_dir
    _write_json(
        folder / "results.json",
        {
            "checkpoint": str(args.checkpoint_path),
            "weights": args.weights,
            "num_samples": len(rows),
            "length": made.shape[1],
            "sampling_method": method,
            "algorithm": args.algorithm,
            "steps": args.steps,
            "eta": args.eta,
            "seed": args.seed,
            "batch_size": args.batch_size,
            "metrics": measured,
            "definitions": DEFINITIONS,
            "references": references,
        },
    )
    if args.save_samples:
        both = [{"text": text, "tokens": row} for text, row in zip(texts, rows, strict=True)]
        _write_json(folder / "samples.json", both)
        with replacing(folder / "samples.txt") as aside:
            aside.write_text("\n\n----\n\n".join(texts) + "\n", encoding="utf-8")
    for name, value in measured.items():
        print(f"{name:42} {_shown(value)}")
    for name, reference in references.items():
        print(f"{name + ', entropy of as much text':42} {_shown(reference.get('entropy', reference))}")
    print(f"results: {folder}")
    return int(failed or missing)


def _parser(program: str, summary: str) -> argparse.ArgumentParser:
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


def _generation_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _parser("hdlm/eval_generation.py", "Write samples and measure them.")
    parser.add_argument(
        "--family",
        choices=("auto", "epsilon", "gamma", "epsilon_hybrid", "gamma_hybrid"),
        default="auto",
        help="what the model must be (default: whatever it is)",
    )
    parser.add_argument("--num_samples", type=int, default=100, help="default: 100")
    parser.add_argument(
        "--steps", type=int, default=128, help="from noise to text; of a block (default: 128)"
    )
    parser.add_argument(
        "--datasets",
        nargs="+",
        help=f"text to compare with (default: those of {', '.join(REFERENCES)} that lie in the data folder)",
    )
    parser.add_argument(
        "--sampling_method",
        choices=(*LOGIT_METHODS, *SCORE_METHODS),
        help="default: full_diff or full_diff_shifted; SAR for gamma-hybrids",
    )
    parser.add_argument("--algorithm", help="original, acs, remask, remask_adhoc_shuffle, remdm, ...")
    parser.add_argument("--eta", type=float, default=0.01, help="strength of corrections (default: 0.01)")
    parser.add_argument("--length", type=int, help="tokens in a sample (default: the model's context)")
    parser.add_argument("--batch_size", type=int, default=16, help="samples at a time (default: 16)")
    parser.add_argument("--judge", help=f"who judges perplexity, a folder or hub name (default: {JUDGE})")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("logs", "eval_generation"), help="for the results"
    )
    parser.add_argument("--save_samples", action="store_true", help="write the samples too")
    args = parser.parse_args(arguments)
    for option in ("num_samples", "steps", "batch_size"):
        if getattr(args, option) < 1:
            raise ValueError(f"--{option} must be at least 1; got {getattr(args, option)}.")
    return args


def _load(args: argparse.Namespace) -> Checkpoint:
    return hub.load(
        args.checkpoint_path, weights=args.weights, config=args.config_path, device=pick_device(args.device)
    )


def _tokenizer(args: argparse.Namespace, checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer that was named, else the model's, else the one in its run, else the one its config names.

    Raises:
        ValueError: If there is none, or one of another size.
    """
    words = checkpoint.vocabulary.num_words
    if args.tokenizer is not None:
        return find_tokenizer(args.tokenizer, num_words=words)
    if checkpoint.tokenizer is not None:
        return tokenizer_of(checkpoint)
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


def _documents(name: str, folder: Path | None) -> tuple[str, ...]:
    """Text of a data set, or of files."""
    if name in NAMED and folder is not None:
        return tuple(NamedDataset(name, folder=folder).documents())
    return tuple(corpus(name).documents())


def _plan(checkpoint: Checkpoint, length: int) -> AbstractHyperschedule:
    """The hyperschedule of a checkpoint on windows of some length, beginning in pure noise as a bound needs it.

    Raises:
        ValueError: If it has no such length.
    """
    if not checkpoint.hyperschedules:
        return flat(length, length)
    trained = measurable(checkpoint.hyperschedules[0])
    if length == trained.length:
        return trained
    if isinstance(trained, Table):
        raise ValueError(f"the checkpoint's hyperschedule has no other length than {trained.length}.")
    width = {"width": min(trained.width, length)} if hasattr(trained, "width") else {}
    return cast("AbstractHyperschedule", replace(cast("Any", trained), length=length, **width))


def _measured(
    args: argparse.Namespace, checkpoint: Checkpoint, text: TokenStream, name: str
) -> LikelihoodResult:
    with _bar(name) as show:

        def watch(progress: Progress) -> None:
            show(progress.done, progress.total)

        return evaluate(
            checkpoint.denoiser,
            text.tokens,
            _plan(checkpoint, args.length or checkpoint.length),
            bound=args.bound or bound_of(checkpoint.denoiser.process),
            noise_schedule=checkpoint.noise_schedule,
            context=checkpoint.context,
            active=checkpoint.active,
            num_bytes=text.num_bytes,
            replicates=args.monte_carlo_timesteps,
            batch_size=args.batch_size,
            seed=args.seed,
            device=checkpoint.denoiser.device,
            watch=watch,
        )


def _samples(
    args: argparse.Namespace,
    model: AbstractPublishedModel,
    config: Any,
    device: torch.device,
    first_word: int | None,
) -> tuple[str, Tensor]:
    """The method, and the samples that it gives."""
    scores = config.model_type == "gamma_hybrid"
    usual = "SAR" if scores else "full_diff_shifted" if model.denoiser.lookback else "full_diff"
    method = args.sampling_method or usual
    if (method in SCORE_METHODS) != scores:
        kind, known = ("gamma", SCORE_METHODS) if scores else ("epsilon", LOGIT_METHODS)
        raise ValueError(f"--sampling_method {method} is not for {kind}-hybrids; use {' or '.join(known)}.")
    length = args.length or model.checkpoint.length
    begins = method.endswith("shifted") and first_word is not None
    prompt = torch.tensor([[first_word]], device=device) if begins else None
    made = []
    with _bar("writing") as show:
        for first in range(0, args.num_samples, args.batch_size):
            size = min(args.batch_size, args.num_samples - first)
            if scores:
                made.append(_from_scores(args, method, model, config, (size, length), first))
            else:
                made.append(
                    LOGIT_METHODS[method](
                        model,
                        prompt=prompt,
                        batch_size=size,
                        alg=args.algorithm or "original",
                        steps=args.steps,
                        context_length=length,
                        device=device,
                        eta=args.eta,
                        seed=args.seed,
                        first_sequence=first,
                    )
                )
            show(first + size, args.num_samples)
    return method, torch.cat(made).cpu()


def _from_scores(
    args: argparse.Namespace,
    method: str,
    model: AbstractPublishedModel,
    config: Any,
    shape: tuple[int, int],
    first: int,
) -> Tensor:
    """Samples of a gamma-hybrid; NAR writes the whole canvas at once, SAR along the model's hyperschedule."""
    from omegaconf import OmegaConf

    asked = {} if args.algorithm is None else {"sampling": {"algorithm": args.algorithm, "eta": args.eta}}
    plan = flat(shape[1], args.steps) if method == "NAR" else _plan(model.checkpoint, shape[1])
    how = OmegaConf.merge(config, asked)
    write = SCORE_METHODS[method](
        how, meta_schedule=plan, batch_dims=shape, seed=args.seed, first_sequence=first
    )
    return write(model)


def _judge(
    args: argparse.Namespace, texts: list[str], device: torch.device, measured: dict[str, Any]
) -> bool:
    """Add generative perplexity to what has been measured, or why not; whether somebody asked for it in vain."""
    try:
        judge = TransformersJudge(args.judge or JUDGE, device, args.batch_size)
        found = generative_perplexity(judge, texts)
    except (ValueError, ModuleNotFoundError) as error:
        measured["generative perplexity"] = {"failed": " ".join(str(error).split())}
        return args.judge is not None
    measured.update({name: asdict(value) | {"judge": judge.name} for name, value in found.items()})
    return False


def _references(
    args: argparse.Namespace, tokenizer: Tokenizer, shape: torch.Size
) -> tuple[dict[str, Any], bool]:
    """The same measures of as much text of data sets; and whether one that was asked for is missing."""
    folder = {} if args.data_dir is None else {"folder": args.data_dir}
    here = [name for name in REFERENCES if NamedDataset(name, **folder).local_copy() is not None]
    found: dict[str, Any] = {}
    for name in here if args.datasets is None else args.datasets:
        try:
            tokens = tokenise(tokenizer, _documents(name, args.data_dir)).tokens
            rows = tokens[: len(tokens) // shape[1] * shape[1]].view(-1, shape[1])[: shape[0]].tolist()
            found[name] = {"windows": len(rows)} | {
                measure: asdict(value) for measure, value in diversity(rows).items()
            }
        except (ValueError, OSError) as error:
            found[name] = {"failed": " ".join(str(error).split())}
    return found, args.datasets is not None and any("failed" in one for one in found.values())


def _write_json(path: Path, content: Any) -> None:
    with replacing(path) as aside:
        aside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _shown(value: Any) -> str:
    """A measured number with its error, or why there is none."""
    if "failed" in value:
        return f"not computed: {value['failed']}"
    error = "" if value["error"] is None else f" ± {value['error']:.3f}"
    return f"{value['value']:.3f}{error}"


def _print_table(results: dict[str, Any]) -> None:
    print(
        f"{'data set':26} {'tokens':>9} {'bound':>10} {'perplexity':>22} {'bits/token':>11} {'bits/byte':>10}"
    )
    for name, result in results.items():
        if "failed" in result:
            print(f"{name:26} not computed: {result['failed']}")
            continue
        error = result["perplexity_error"]
        perplexity = f"{result['perplexity']:.3f}" + ("" if error is None else f" ± {error:.3f}")
        print(
            f"{name:26} {result['num_tokens']:9,} {result['bound']:>10} {perplexity:>22} "
            f"{result['bits_per_token']:11.4f} {result['bits_per_byte']:10.4f}"
        )


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, nothing elsewhere; what it yields takes how many are done, of how many."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)
