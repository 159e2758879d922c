"""`hdlm/eval_generation.py`: write samples with a model and measure them.

It writes `results.json`, a document of `hdlm.evaluation.records.protocol`, which holds every number and the settings
for measuring it again. A failed measurement appears in it with its reason, never as a number. Then the exit status is
1, but all other measurements are done.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hdlm.atomic import check_folder, keeping, replacing
from hdlm.data import NamedDataset, Tokenizer, tokenise
from hdlm.evaluation.generation.document import generation_document
from hdlm.evaluation.generation.judges import NO_JUDGE, USUAL_JUDGE, judges_of
from hdlm.evaluation.generation.samples import Sample
from hdlm.evaluation.generation.scoring import score, score_tokens
from hdlm.evaluation.records import protocol
from hdlm.evaluation.text import find_text
from hdlm.generation import Settings
from hdlm.hyperschedule import AbstractHyperschedule, flat
from hdlm.network import AbstractNetwork
from hdlm.progress import share_bar
from hdlm.published import samplers
from hdlm.published.eval_common import check_counts, parser, with_tokenizer, write_json
from hdlm.published.model import AbstractPublishedModel, option, smart_model_loader
from hdlm.published.score_samplers import get_nar_sampling_fn, get_sar_sampling_fn

__all__ = ["eval_generation"]

STEPS = 128
LOGIT_METHODS: dict[str, Callable[..., Tensor]] = {
    name: getattr(samplers, name)
    for name in ("full_diff", "semi_diff", "full_diff_shifted", "semi_diff_shifted")
}
SCORE_METHODS = {"NAR": get_nar_sampling_fn, "SAR": get_sar_sampling_fn}
SAMPLES = ("samples.json", "samples.txt")
REFERENCES = ("ptb", "wikitext103", "lambada")

SampleWriter = Callable[[AbstractPublishedModel, int, int], Tensor]
"""Function that writes samples with a model; arguments are the model, their number, and the index of the first."""


def eval_generation(arguments: Sequence[str]) -> int:
    """Write samples and measure them; returns the exit status."""
    args = _generation_arguments(arguments)
    print(f"writing {args.num_samples} samples with {args.checkpoint_path}", file=sys.stderr)
    family = "auto" if args.family == "auto" else f"{args.family.removesuffix('_hybrid')}_hybrid"
    model, config, device, _, trained = smart_model_loader(
        args.checkpoint_path, family, args.device, args.config_path, weights=args.weights
    )
    checkpoint = with_tokenizer(args, model.checkpoint)
    begin = time.perf_counter()
    settings, samples = _samples(args, model, config, trained.hyperschedule, checkpoint.tokenizer)
    rows, texts = [sample.written for sample in samples], [sample.text for sample in samples]
    judges = judges_of([] if args.judge == NO_JUDGE else [args.judge], device, args.batch_size)
    measured = score(rows, texts, judges)
    failed = any("failed" in entry for name, entry in measured.items() if name != "self-BLEU")
    references, missing = _references(args, checkpoint.tokenizer, len(rows), len(rows[0]))
    document = generation_document(
        checkpoint,
        samples,
        begin=begin,
        settings=settings,
        seed=args.seed,
        metrics=measured,
        references=references,
        controls={},
        telemetry=None,
        model=str(args.checkpoint_path),
        weights=args.weights,
    )
    _write(args, document, samples)
    for name, value in measured.items():
        print(f"{name:42} {_shown(value)}")
    for name, reference in references.items():
        print(f"{name + ', entropy of as much text':42} {_shown(reference.get('entropy', reference))}")
    print(f"results: {args.output_dir}")
    return int(failed or missing)


def _write(args: argparse.Namespace, document: dict[str, Any], samples: list[Sample]) -> None:
    """Write the results, and the samples if requested."""
    folder: Path = args.output_dir
    with keeping(lambda: json.dumps(document)):
        protocol.write_result(folder / "results.json", document)
    if args.save_samples:
        both = [{"text": sample.text, "tokens": sample.tokens} for sample in samples]
        write_json(folder / "samples.json", both)
        with replacing(folder / "samples.txt") as aside:
            text = "\n\n----\n\n".join(sample.text for sample in samples)
            aside.write_text(text + "\n", encoding="utf-8")


def _count_calls(network: AbstractNetwork) -> list[None]:
    """A list that grows by one with every network call, for any sequences."""
    calls: list[None] = []
    network.blocks[0].register_forward_hook(lambda *_: calls.append(None))
    return calls


def _generation_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    options = parser("hdlm/eval_generation.py", "Write samples and measure them.")
    options.add_argument(
        "--family",
        choices=("auto", "epsilon", "gamma", "epsilon_hybrid", "gamma_hybrid"),
        default="auto",
        help="family that the model must have (default: any)",
    )
    options.add_argument("--num_samples", type=int, default=100, help="number of samples (default: 100)")
    options.add_argument(
        "--steps",
        type=int,
        help="number of steps from noise to text, for SAR those of a block "
        f"(default: {STEPS}; for SAR, as the model was trained)",
    )
    options.add_argument(
        "--datasets",
        nargs="+",
        help=f"text to compare with (default: those of {', '.join(REFERENCES)} that are in the data folder)",
    )
    options.add_argument(
        "--sampling_method",
        choices=(*LOGIT_METHODS, *SCORE_METHODS),
        help="sampler (default: full_diff or full_diff_shifted; SAR for gamma-hybrids)",
    )
    options.add_argument(
        "--algorithm", help="algorithm of a step: original, acs, remask, remask_adhoc_shuffle, remdm, ..."
    )
    options.add_argument("--eta", type=float, default=0.01, help="strength of corrections (default: 0.01)")
    options.add_argument("--length", type=int, help="tokens in a sample (default: the model's context)")
    options.add_argument("--batch_size", type=int, default=16, help="samples at a time (default: 16)")
    options.add_argument(
        "--judge",
        default=USUAL_JUDGE,
        help="judge of the perplexity: folder or hub name of a causal language model, or a checkpoint of hdlm; "
        f"{NO_JUDGE} for no judge (default: {USUAL_JUDGE})",
    )
    options.add_argument(
        "--output_dir", type=Path, default=Path("logs", "eval_generation"), help="folder for the results"
    )
    options.add_argument("--save_samples", action="store_true", help="write the samples as well")
    args = options.parse_args(arguments)
    check_counts(args, "num_samples", "steps", "batch_size", "length")
    check_folder(args.output_dir, "results.json", *(SAMPLES if args.save_samples else ()))
    return args


def _samples(
    args: argparse.Namespace,
    model: AbstractPublishedModel,
    config: Any,
    trained: AbstractHyperschedule,
    tokenizer: Tokenizer,
) -> tuple[dict[str, Any], list[Sample]]:
    """The settings of the samples, and the samples."""
    scores = config.model_type == "gamma_hybrid"
    usual = "SAR" if scores else "full_diff_shifted" if model.denoiser.lookback else "full_diff"
    method = args.sampling_method or usual
    if (method in SCORE_METHODS) != scores:
        kind, known = ("gamma", SCORE_METHODS) if scores else ("epsilon", LOGIT_METHODS)
        raise ValueError(f"--sampling_method {method} is not for {kind}-hybrids; use {' or '.join(known)}.")
    length = args.length or model.checkpoint.length
    if scores:
        settings, write = _from_scores(args, method, config, trained, length)
    else:
        settings, write = _from_logits(args, method, tokenizer.vocabulary.bos, length)
    calls, begin, rows = _count_calls(model.checkpoint.network), time.perf_counter(), []
    with share_bar("writing", shown=sys.stderr.isatty()) as bar:
        for first in range(0, args.num_samples, args.batch_size):
            rows += write(model, min(args.batch_size, args.num_samples - first), first).tolist()
            bar(len(rows) / args.num_samples, "writing")
    price = len(calls) / math.ceil(len(rows) / args.batch_size), (time.perf_counter() - begin) / len(rows)
    samples = [Sample(tokenizer.decode(row), row, _num_given(method), *price, revisions={}) for row in rows]
    return {"sampling_method": method, "eta": args.eta, **settings}, samples


def _num_given(method: str) -> int:
    """Number of given tokens at the beginning: a shifted model is given the first token."""
    return int(method.endswith("shifted"))


def _from_logits(
    args: argparse.Namespace, method: str, first_word: int | None, length: int
) -> tuple[dict[str, Any], SampleWriter]:
    """The settings and the sampling function of an epsilon-hybrid."""
    algorithm, steps = args.algorithm or "original", args.steps or STEPS
    begins = _num_given(method) and first_word is not None

    def write(model: AbstractPublishedModel, size: int, first: int) -> Tensor:
        return LOGIT_METHODS[method](
            model,
            prompt=torch.tensor([[first_word]]) if begins else None,
            batch_size=size,
            alg=algorithm,
            steps=steps,
            context_length=length,
            eta=args.eta,
            seed=args.seed,
            first_sequence=first,
        )

    return {"algorithm": algorithm, "steps": steps}, write


def _from_scores(
    args: argparse.Namespace, method: str, config: Any, trained: AbstractHyperschedule, length: int
) -> tuple[dict[str, Any], SampleWriter]:
    """The settings and the sampling function of a gamma-hybrid: NAR for the whole canvas, SAR for its hyperschedule."""
    from omegaconf import OmegaConf

    asked = {} if args.algorithm is None else {"sampling": {"algorithm": args.algorithm, "eta": args.eta}}
    how = OmegaConf.merge(config, asked)
    plan: AbstractHyperschedule = flat(length, args.steps or STEPS)
    if method == "SAR":
        plan = Settings(steps=args.steps).plan((trained,), length)

    def write(model: AbstractPublishedModel, size: int, first: int) -> Tensor:
        return SCORE_METHODS[method](
            how, meta_schedule=plan, batch_dims=(size, length), seed=args.seed, first_sequence=first
        )(model)

    predictor = option(how, "sampling.predictor", "analytic")
    return {"algorithm": option(how, "sampling.algorithm", predictor), "steps": plan.num_levels}, write


def _references(
    args: argparse.Namespace, tokenizer: Tokenizer, num: int, length: int
) -> tuple[dict[str, Any], bool]:
    """The measures on an equal amount of text of data sets, and whether a requested data set is missing."""
    folder = {} if args.data_dir is None else {"folder": args.data_dir}
    here = [name for name in REFERENCES if NamedDataset(name, **folder).local_copy() is not None]
    references: dict[str, Any] = {}
    for name in here if args.datasets is None else args.datasets:
        try:
            source = find_text(name, folder=args.data_dir)
            tokens = tokenise(tokenizer, tuple(source.corpus.documents())).tokens
            rows = tokens[: len(tokens) // length * length].view(-1, length)[:num].tolist()
            if not rows:
                raise ValueError(
                    f"it has {len(tokens)} tokens, which is less than the length of a sample, {length}."
                )
            references[name] = {"windows": len(rows), **score_tokens(rows)}
        except (ValueError, OSError) as error:
            references[name] = {"failed": " ".join(str(error).split())}
    return references, args.datasets is not None and any(
        "failed" in reference for reference in references.values()
    )


def _shown(value: Any) -> str:
    """A measured number with its error, or the reason why there is none."""
    if "failed" in value:
        return f"not computed: {value['failed']}"
    error = "" if value["error"] is None else f" ± {value['error']:.3f}"
    return f"{value['value']:.3f}{error}"
