"""Measure what a model writes: variety, repetition, perplexity under judges, MAUVE, and what correction did.

CHECKPOINT is whatever `hdlm sample` takes, and so are the options of writing. Entropy stands beside every perplexity: a
writer that repeats itself has a good perplexity. Controls are writers that know nothing, for comparison.

Examples:
  hdlm eval generation runs/first --num 100 --algorithm acs --eta 0.1 --output results/acs     judged by gpt2-large
  hdlm eval generation runs/first --judge models/gpt2 --judge kjv-epsilon-4m --output results/judged
  hdlm eval generation runs/first --reference wikitext2 --controls repeat unigram shuffle data
  hdlm eval generation runs/first --num 1000 --judge models/gpt2 --mauve --reference book.txt --output results/mauve
  hdlm eval generation runs/first --reference book.txt --infill 0.5 --eta-sweep 0 0.01 0.05 0.1 0.3

With --output the folder gets results.json, report.md, metrics.png and samples.jsonl. Samples are kept as they come: the
same command goes on after a kill. What cannot be measured is in the result with the reason, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdlm.atomic import keeping
from hdlm.cli._judges import add_judge, judges_asked
from hdlm.cli._models import add_checkpoint, open_checkpoint
from hdlm.cli._options import add_device, add_json, add_seed, at_least_one, device_of, json_text, print_json
from hdlm.cli._outputs import Output
from hdlm.cli._progress import share_bar
from hdlm.cli.sample import add_settings, settings_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hdlm.checkpoint import Checkpoint
    from hdlm.data import Tokenizer
    from hdlm.evaluation.generation.judge import AbstractJudge, TransformersJudge
    from hdlm.evaluation.generation.samples import Sample
    from hdlm.generation import Settings
    from hdlm.process import AbstractNoiseProcess

CONTROLS = ("repeat", "unigram", "shuffle", "data")
JUDGED_AT_A_TIME = 8
FOLDER = Output("folder", ("results.json", "report.md", "metrics.png", "samples.json"))

_UNASKED = ("distinct-", "repetition-", "self-BLEU")
"""How the names of measures begin that are taken of all samples and need samples of some length or number."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to write, and what to measure of it."""
    add_checkpoint(parser)
    parser.add_argument("--num", type=at_least_one, default=100, help="samples (default: %(default)s)")
    parser.add_argument("--prompt", default="", help="text that all samples begin with")
    parser.add_argument(
        "--batch-size", default="auto", help="samples at a time, or auto: as many as fit (default)"
    )
    what = parser.add_argument_group("what to measure")
    add_judge(what)
    what.add_argument(
        "--mauve", action="store_true", help="MAUVE against --reference, by the first judge's features"
    )
    what.add_argument("--reference", metavar="DATA", help="real text: a data set, file or folder")
    what.add_argument("--data-dir", type=Path, help="folder of data sets (default: $HDLM_DATA_DIR)")
    what.add_argument(
        "--controls",
        nargs="+",
        choices=CONTROLS,
        default=[],
        help="writers that know nothing, made from --reference, to be measured beside the model",
    )
    what.add_argument(
        "--infill",
        type=float,
        metavar="SHARE",
        help="take this share of the words of --reference away, and see what filling in and correcting makes of it",
    )
    what.add_argument(
        "--eta-sweep", nargs="+", type=float, default=[], metavar="ETA", help="the same at other strengths"
    )
    add_settings(parser)
    add_seed(parser)
    add_device(parser)
    add_json(parser)
    parser.add_argument(
        "--output", type=FOLDER, metavar="FOLDER", help="for the results (default: print only)"
    )
    parser.add_argument("--save-samples", action="store_true", help="write samples.json, too")


def run(args: argparse.Namespace) -> int:
    """Write, measure, report."""
    _check(args)
    from hdlm.evaluation.records.protocol import describe
    from hdlm.generation import tokenizer_of

    begin = time.perf_counter()
    device = device_of(args)
    checkpoint = open_checkpoint(args, device)
    _check_sweep(args, checkpoint.denoiser.process)
    evaluation = _Evaluation(args, checkpoint, tokenizer_of(checkpoint), device)
    result = evaluation.result()
    document = describe(
        checkpoint,
        args.checkpoint,
        kind="generation",
        result=result,
        seed=args.seed,
        weights=args.weights,
        data=evaluation.data,
        wall_seconds=time.perf_counter() - begin,
    )
    if args.output is not None:
        with keeping(lambda: json_text(document)):
            _write_all(args, document, evaluation.samples)
    if args.json:
        print_json(document)
    else:
        from hdlm.view.generation import summary

        print(summary(document))
        if args.output is not None:
            print(f"\nresults: {args.output}")
    return int(_has_failed(result))


def _check(args: argparse.Namespace) -> None:
    judges = judges_asked(args)
    wants = {"--mauve": args.mauve, "--controls": args.controls, "--infill": args.infill is not None}
    for option, wanted in wants.items():
        if wanted and args.reference is None:
            raise ValueError(f"{option} needs real text: give --reference, a data set, file or folder.")
    if args.reference is not None and Path(args.reference).name in ("model", *CONTROLS):
        raise ValueError(
            f"--reference {args.reference}: results have something else of this name; rename it."
        )
    if args.mauve and not judges:
        raise ValueError("--mauve needs the features of a --judge in the format of transformers.")
    if args.save_samples and args.output is None:
        raise ValueError("--save-samples needs --output, the folder to write them to.")
    if args.batch_size != "auto":
        try:
            at_least_one(args.batch_size)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"--batch-size {error}, or auto.") from error
    if args.infill is not None and not 0 < args.infill <= 1:
        raise ValueError(f"--infill is a share in (0, 1]; got {args.infill}.")


def _check_sweep(args: argparse.Namespace, process: AbstractNoiseProcess) -> None:
    """See that the sampler can have every strength that is asked for."""
    from hdlm.sampling import ALGORITHMS, algorithm

    if not args.eta_sweep:
        return
    for eta in args.eta_sweep:
        algorithm(args.algorithm, process, eta)
    with_eta = [name for name in ALGORITHMS if algorithm(name, process, 0.0) != algorithm(name, process, 1.0)]
    if args.algorithm not in with_eta:
        raise ValueError(
            f"--eta-sweep: eta means nothing to the sampler {args.algorithm!r}; it does to {', '.join(with_eta)}."
        )


class _Evaluation:
    """One evaluation at work: the samples, then everything that is said of them."""

    def __init__(
        self, args: argparse.Namespace, checkpoint: Checkpoint, tokenizer: Tokenizer, device: torch.device
    ) -> None:
        self.args, self.checkpoint, self.tokenizer, self.device = args, checkpoint, tokenizer, device
        self.settings = settings_of(args)
        self.shown = not args.json and sys.stderr.isatty()
        self.data: dict[str, Any] | None = None
        self.samples: list[Sample] = []

    def result(self) -> dict[str, Any]:
        """The `result` of the document."""
        from hdlm.evaluation.generation.judges import judges_of
        from hdlm.evaluation.generation.samples import DRAW_DTYPE, num_evaluations, tokens_per_second
        from hdlm.evaluation.generation.scoring import DEFINITIONS

        reference = None if self.args.reference is None else self._text()
        self.samples = self.draw(self.settings, "samples.jsonl")
        judges = judges_of(judges_asked(self.args), self.device, JUDGED_AT_A_TIME, offline=self.args.offline)
        scores = self._scores(judges, reference)
        return {
            "settings": {**asdict(self.settings), "prompt": self.args.prompt},
            "num_samples": len(self.samples),
            "length": len(self.samples[0].tokens),
            "num_given": self.samples[0].given,
            "num_evaluations": num_evaluations(self.samples),
            "tokens_per_second": tokens_per_second(self.samples),
            "draw_dtype": DRAW_DTYPE,
            "metrics": scores.pop("model"),
            "references": {name: scores.pop(name) for name in [self.args.reference] if name in scores},
            "controls": scores,
            "telemetry": self._telemetry(judges, reference),
            "definitions": dict(DEFINITIONS),
        }

    def draw(self, settings: Settings, name: str) -> list[Sample]:
        """Samples; they are kept under this name if there is a folder."""
        from hdlm.evaluation.generation.samples import draw_samples

        args, size = self.args, self.args.batch_size
        with share_bar("writing", shown=self.shown) as bar:
            return draw_samples(
                self.checkpoint,
                settings,
                prompt=args.prompt,
                num=args.num,
                batch_size=None if size == "auto" else int(size),
                seed=args.seed,
                device=self.device,
                keep=None if args.output is None else args.output / name,
                watch=lambda done, share: bar(share, f"writing sample {done + 1} of {args.num}"),
            )

    def _text(self) -> Tensor | str:
        """Tokens of the reference, or why there are none."""
        from hdlm.evaluation.text import find_text, read_text

        try:
            source = find_text(self.args.reference, folder=self.args.data_dir)
            text = read_text(self.tokenizer, source.corpus.documents())
        except (ValueError, OSError, ModuleNotFoundError) as error:
            return " ".join(str(error).split())
        self.data = source.describe(text)
        return text.tokens

    def _others(self, text: Tensor | str) -> dict[str, list[list[int]] | str]:
        """Token ids of the reference and of the controls, or why there are none."""
        from hdlm.evaluation.generation.controls import control
        from hdlm.evaluation.generation.scoring import pieces

        num, length, seed = len(self.samples), len(self.samples[0].written), self.args.seed
        found: dict[str, list[list[int]] | str] = {}
        for name in [self.args.reference, *self.args.controls]:
            try:
                if isinstance(text, str):
                    found[name] = text
                elif name == self.args.reference:
                    found[name] = pieces(text, num, length, seed).tolist()
                else:
                    source = self._readable(text) if name == "repeat" else text
                    found[name] = control(name, source, num, length, seed).tolist()
            except ValueError as error:
                found[name] = str(error)
        return found

    def _readable(self, text: Tensor) -> Tensor:
        """The text without words that show nothing: end-of-text or spaces, repeated, are no text at all."""
        import torch

        from hdlm.evaluation.generation.scoring import text_of

        words = [word for word in text.unique().tolist() if text_of([word], self.tokenizer)]
        return text[torch.isin(text, torch.tensor(words))]

    def _scores(
        self, judges: dict[str, AbstractJudge | str], text: Tensor | str | None
    ) -> dict[str, dict[str, Any]]:
        """Scores of the model, the reference and the controls."""
        from hdlm.evaluation.generation.scoring import score, text_of

        rows: dict[str, list[list[int]] | str] = {"model": [one.written for one in self.samples]}
        rows |= {} if text is None else self._others(text)
        words = {
            name: [text_of(row, self.tokenizer) for row in found]
            for name, found in rows.items()
            if not isinstance(found, str)
        } | {"model": [one.text for one in self.samples]}
        scores: dict[str, dict[str, Any]] = {}
        with share_bar("scoring", shown=self.shown) as bar:
            for place, (name, found) in enumerate(rows.items()):
                bar(place / len(rows), f"scoring {name}")
                if isinstance(found, str):
                    scores[name] = {"entropy": {"failed": found}}
                else:
                    scores[name] = score(found, words[name], judges)
            if self.args.mauve:
                bar(0.95, "MAUVE")
                for name, similarity in self._mauve(judges, rows, words).items():
                    scores[name] |= similarity
        return scores

    def _mauve(
        self,
        judges: dict[str, AbstractJudge | str],
        rows: dict[str, list[list[int]] | str],
        words: dict[str, list[str]],
    ) -> dict[str, dict[str, Any]]:
        """MAUVE of the model and of the controls against the reference, or why there is none."""
        from hdlm.evaluation.generation.scoring import score_mauve

        judge, name = _featured(judges), self.args.reference
        if judge is None:
            why = "no judge has features: give a causal language model in the format of transformers first"
        elif name not in words:
            why = f"there is no reference: {rows[name]}"
        else:
            remembered = lru_cache(maxsize=8)(judge.features)
            return {
                other: score_mauve(
                    found, words[name], lambda texts: remembered(tuple(texts)), self.args.seed, judge
                )
                for other, found in words.items()
                if other != name
            }
        return {other: {"MAUVE": {"failed": why}} for other in rows}

    def _telemetry(self, judges: dict[str, AbstractJudge | str], text: Tensor | str | None) -> dict[str, Any]:
        """What correction did; in real text with gaps, and at other strengths, if asked for."""
        from hdlm.evaluation.generation.scoring import PERPLEXITY, score

        found = self._revised(self.settings, self.samples, text)
        found["eta_sweep"] = []
        for eta in self.args.eta_sweep:
            settings = replace(self.settings, eta=eta)
            samples = self.draw(settings, f"samples-eta-{eta:g}.jsonl")
            scores = score([one.written for one in samples], [one.text for one in samples], judges)
            chosen = {
                name: value
                for name, value in scores.items()
                if name == "entropy" or name.startswith(PERPLEXITY)
            }
            found["eta_sweep"].append({"eta": eta, **chosen, **self._revised(settings, samples, text)})
        return found

    def _revised(
        self, settings: Settings, samples: list[Sample], text: Tensor | str | None
    ) -> dict[str, Any]:
        """Words revised in samples, and in real text with gaps."""
        import torch

        from hdlm.evaluation.generation.corrections import fill_in, per_step
        from hdlm.evaluation.generation.metrics import Estimate
        from hdlm.evaluation.generation.scoring import attempt, pieces

        found = {
            name: asdict(value) if isinstance(value, Estimate) else value
            for name, value in per_step([one.revisions for one in samples]).items()
        }
        if self.args.infill is None or text is None:
            return {**found, "infilling": None}
        if isinstance(text, str):
            return {**found, "infilling": {"gaps": {"failed": text}}}
        words, size, bos = text, len(samples[0].tokens), self.tokenizer.vocabulary.bos

        def measure() -> dict[str, Estimate]:
            begin = 0 if bos is None else 1
            rows = pieces(words, len(samples), size - begin, self.args.seed)
            if bos is not None:
                rows = torch.cat([torch.full((len(rows), 1), bos), rows], 1)
            with share_bar("filling in", shown=self.shown) as bar:
                return fill_in(
                    self.checkpoint,
                    rows,
                    settings,
                    share=self.args.infill,
                    seed=self.args.seed,
                    device=self.device,
                    watch=lambda frame: bar(frame.share, "filling in"),
                )

        return {**found, "infilling": attempt(("gaps",), measure)}


def _featured(judges: dict[str, AbstractJudge | str]) -> TransformersJudge | None:
    """The first judge that has features."""
    from hdlm.evaluation.generation.judge import TransformersJudge

    return next((judge for judge in judges.values() if isinstance(judge, TransformersJudge)), None)


def _has_failed(result: Any) -> bool:
    """Whether something that was asked for is missing.

    Measures of variety come unasked: short or few samples have none.
    """
    if isinstance(result, dict):
        return "failed" in result or any(
            _has_failed(one) for name, one in result.items() if not name.startswith(_UNASKED)
        )
    return isinstance(result, list) and any(_has_failed(one) for one in result)


def _write_all(args: argparse.Namespace, document: dict[str, Any], samples: list[Sample]) -> None:
    """Results, report, picture, and the samples if asked for."""
    import json

    from hdlm.atomic import replacing
    from hdlm.evaluation.records.protocol import write
    from hdlm.view.generation import draw_metrics, write_generation_report

    write(args.output / "results.json", document)
    write_generation_report(args.output / "report.md", document)
    draw_metrics(document, args.output / "metrics.png")
    if args.save_samples:
        both = [{"text": one.text, "tokens": one.tokens, "given": one.given} for one in samples]
        with replacing(args.output / "samples.json") as aside:
            aside.write_text(json.dumps(both, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
