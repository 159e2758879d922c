"""Write samples with a checkpoint and measure them: what `hdlm.evaluate.generation` and the command do.

A measurement that fails appears in the result with its reason, never as a number.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from hdlm.atomic import keeping, replacing
from hdlm.checkpoint import Checkpoint
from hdlm.evaluation.generation.controls import CONTROLS, control
from hdlm.evaluation.generation.corrections import fill_in, per_step
from hdlm.evaluation.generation.document import generation_document
from hdlm.evaluation.generation.judge import AbstractJudge, TransformersJudge
from hdlm.evaluation.generation.judges import judges_of
from hdlm.evaluation.generation.metrics import Estimate
from hdlm.evaluation.generation.samples import Sample, draw_samples
from hdlm.evaluation.generation.scoring import (
    PERPLEXITY,
    canvases,
    pieces,
    score,
    score_mauve,
    score_or_failure,
    text_of,
)
from hdlm.evaluation.records import protocol
from hdlm.evaluation.text import find_text, tokenize_documents
from hdlm.generation import Settings
from hdlm.process import AbstractNoiseProcess
from hdlm.progress import share_bar
from hdlm.sampling import ALGORITHMS, algorithm

__all__ = ["GenerationOptions", "GenerationResult", "has_failed", "measured_generation"]

JUDGED_AT_A_TIME = 8

_UNASKED = ("distinct-", "repetition-", "self-BLEU")
"""Prefixes of the measures that are always taken; they may fail on short or few samples."""

Rows = dict[str, list[list[int]] | str]
"""Token ids of texts by name, or a string with the reason why they are missing."""


@final
@dataclass(frozen=True)
class GenerationOptions:
    """What is written, and what is measured of it.

    Attributes:
        prompt: Text that all samples begin with.
        num: Number of samples, at least 1.
        batch_size: Number of samples that are written at a time; by default as many as fit.
        seed: Seed of all randomness.
        judges: Folders or hub names of causal language models, or names of checkpoints, that judge perplexity.
        offline: Whether to use only files of the hub that are in its cache.
        reference: Real text to compare with: a data set by name, a file, a folder or a glob.
        data_dir: Folder of data sets; by default that of the environment, $HDLM_DATA_DIR.
        controls: Writers without a model, made from the reference, that are measured beside the model.
        mauve: Whether to measure MAUVE against the reference, by the features of the first judge.
        infill: Share of the words of the reference that is removed and filled in again, in (0, 1].
        eta_sweep: Strengths of correction at which everything is measured again.

    Raises:
        ValueError: If an option is out of range, or needs another one.
    """

    prompt: str = ""
    num: int = 100
    batch_size: int | None = None
    seed: int = 0
    judges: tuple[str, ...] = ()
    offline: bool = False
    reference: object = None
    data_dir: Path | None = None
    controls: tuple[str, ...] = ()
    mauve: bool = False
    infill: float | None = None
    eta_sweep: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        wants = {"mauve": self.mauve, "controls": self.controls, "infill": self.infill is not None}
        for option, wanted in wants.items():
            if wanted and self.reference is None:
                raise ValueError(f"{option} needs real text: give a reference, a data set, file or folder.")
        unknown = [name for name in self.controls if name not in CONTROLS]
        if unknown:
            raise ValueError(f"controls are {', '.join(CONTROLS)}; got {', '.join(unknown)}.")
        if isinstance(self.reference, str | Path) and Path(self.reference).name in ("model", *CONTROLS):
            raise ValueError(
                f"the reference {self.reference} has the name of another field of the results: rename the reference."
            )
        if self.mauve and not self.judges:
            raise ValueError(
                "mauve needs a judge in the format of transformers, which computes the features: give one."
            )
        if self.infill is not None and not 0 < self.infill <= 1:
            raise ValueError(f"infill is a share in (0, 1]; got {self.infill}.")
        for name in ("num", "batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}.")


@final
@dataclass(frozen=True, eq=False)
class GenerationResult:
    """Samples and their measurements.

    Attributes:
        document: The document of the result; see `hdlm.evaluation.records.protocol`.
        samples: The samples that were written.
    """

    document: dict[str, Any]
    samples: tuple[Sample, ...]

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Numbers by name, each with its `value` and its `error`, or with the reason why it `failed`."""
        metrics: dict[str, dict[str, Any]] = self.document["result"]["metrics"]
        return metrics


def measured_generation(
    checkpoint: Checkpoint,
    settings: Settings,
    options: GenerationOptions,
    *,
    model: str = "a checkpoint",
    weights: Any = "only",
    output: Path | None = None,
    save_samples: bool = False,
    progress: bool | None = None,
) -> GenerationResult:
    """Write samples and measure them.

    Args:
        checkpoint: The checkpoint of the model.
        settings: Settings of the sampler.
        options: Which samples are written, and which measurements are taken.
        model: Name of the model in the document.
        weights: Which weights were loaded, `"averaged"` or `"raw"`, if that is known.
        output: Folder for the document, a report and a picture. Samples are saved there during the run, and the same
            call resumes there.
        save_samples: Whether `samples.json` is written into the folder.
        progress: Whether a progress bar is shown; by default in a terminal and in a notebook.

    Raises:
        ValueError: If a setting is out of range or does not fit the model.
    """
    _check_sweep(settings.algorithm, options.eta_sweep, checkpoint.denoiser.process)
    evaluation = _Evaluation(checkpoint, settings, options, output, progress)
    document = evaluation.document(model, weights)
    if output is not None:
        with keeping(lambda: json.dumps(document)):
            _write_all(output, document, evaluation.samples if save_samples else None)
    return GenerationResult(document, tuple(evaluation.samples))


def has_failed(result: Any) -> bool:
    """Whether a requested measurement is missing in a result.

    Measures of variety are always taken and do not count: short or few samples have none.
    """
    if isinstance(result, dict):
        return "failed" in result or any(
            has_failed(entry) for name, entry in result.items() if not name.startswith(_UNASKED)
        )
    return isinstance(result, list) and any(has_failed(entry) for entry in result)


def _check_sweep(name: str, etas: tuple[float, ...], process: AbstractNoiseProcess) -> None:
    """Check that the sampler accepts every correction strength of the sweep."""
    if not etas:
        return
    for eta in etas:
        algorithm(name, process, eta)
    with_eta = [
        other for other in ALGORITHMS if algorithm(other, process, 0.0) != algorithm(other, process, 1.0)
    ]
    if name not in with_eta:
        raise ValueError(
            f"eta_sweep: eta has no effect on the sampler {name!r}; it has one on {', '.join(with_eta)}."
        )


@dataclass(eq=False)
class _Evaluation:
    """One evaluation: the samples, then all their measurements."""

    checkpoint: Checkpoint
    settings: Settings
    options: GenerationOptions
    output: Path | None
    progress: bool | None
    data: dict[str, Any] | None = None
    samples: list[Sample] = field(default_factory=list)

    def document(self, model: str, weights: Any) -> dict[str, Any]:
        """The document of all measurements."""
        begin = time.perf_counter()
        reference = None if self.options.reference is None else self._text()
        self.samples = self.draw(self.settings, "samples.jsonl")
        judges = judges_of(
            self.options.judges, self.checkpoint.device, JUDGED_AT_A_TIME, offline=self.options.offline
        )
        scores = self._scores(judges, reference)
        return generation_document(
            self.checkpoint,
            self.samples,
            begin=begin,
            settings={**asdict(self.settings), "prompt": self.options.prompt},
            seed=self.options.seed,
            model=model,
            weights=weights,
            data=self.data,
            metrics=scores.pop("model"),
            references={name: scores.pop(name) for name in [self._reference] if name in scores},
            controls=scores,
            telemetry=self._telemetry(judges, reference),
        )

    def draw(self, settings: Settings, name: str) -> list[Sample]:
        """Write samples; they are saved under this name if there is a folder."""
        options = self.options
        with share_bar("writing", shown=self.progress) as bar:
            return draw_samples(
                self.checkpoint,
                settings,
                prompt=options.prompt,
                num=options.num,
                batch_size=options.batch_size,
                seed=options.seed,
                keep=None if self.output is None else self.output / name,
                watch=lambda done, share: bar(share, f"writing sample {done + 1} of {options.num}"),
            )

    @property
    def _reference(self) -> str:
        """The name of the reference in the result."""
        given = self.options.reference
        return str(given) if isinstance(given, str | Path) else "reference"

    def _text(self) -> Tensor | str:
        """Tokens of the reference, or the reason why there are none."""
        try:
            source = find_text(self.options.reference, folder=self.options.data_dir)
            text = tokenize_documents(self.checkpoint.tokenizer, source.corpus.documents())
        except (ValueError, OSError, ModuleNotFoundError) as error:
            return " ".join(str(error).split())
        self.data = source.describe(text)
        return text.tokens

    def _others(self, text: Tensor | str) -> Rows:
        """Token ids of the reference and of the controls, or the reason why there are none."""
        num, length, seed = len(self.samples), len(self.samples[0].written), self.options.seed
        rows: Rows = {}
        for name in [self._reference, *self.options.controls]:
            try:
                if isinstance(text, str):
                    rows[name] = text
                elif name == self._reference:
                    rows[name] = pieces(text, num, length, seed).tolist()
                else:
                    source = self._readable(text) if name == "repeat" else text
                    rows[name] = control(name, source, num, length, seed).tolist()
            except ValueError as error:
                rows[name] = str(error)
        return rows

    def _readable(self, text: Tensor) -> Tensor:
        """The text without invisible words: repeated end-of-text tokens or spaces count as an empty text."""
        words = [word for word in text.unique().tolist() if text_of([word], self.checkpoint.tokenizer)]
        return text[torch.isin(text, torch.tensor(words))]

    def _scores(
        self, judges: dict[str, AbstractJudge | str], text: Tensor | str | None
    ) -> dict[str, dict[str, Any]]:
        """Scores of the model, the reference and the controls."""
        rows: Rows = {"model": [sample.written for sample in self.samples]}
        rows |= {} if text is None else self._others(text)
        words = {
            name: [text_of(row, self.checkpoint.tokenizer) for row in token_ids]
            for name, token_ids in rows.items()
            if not isinstance(token_ids, str)
        } | {"model": [sample.text for sample in self.samples]}
        scores: dict[str, dict[str, Any]] = {}
        with share_bar("scoring", shown=self.progress) as bar:
            for place, (name, token_ids) in enumerate(rows.items()):
                bar(place / len(rows), f"scoring {name}")
                if isinstance(token_ids, str):
                    scores[name] = {"entropy": {"failed": token_ids}}
                else:
                    scores[name] = score(token_ids, words[name], judges)
            if self.options.mauve:
                bar(0.95, "MAUVE")
                for name, similarity in self._mauve(judges, rows, words).items():
                    scores[name] |= similarity
        return scores

    def _mauve(
        self,
        judges: dict[str, AbstractJudge | str],
        rows: Rows,
        words: dict[str, list[str]],
    ) -> dict[str, dict[str, Any]]:
        """MAUVE of the model and of the controls against the reference, or the reason why there is none."""
        judge, name = _featured(judges), self._reference
        if judge is None:
            why = "no judge has features: give a causal language model in the format of transformers first"
        elif name not in words:
            why = f"there is no reference: {rows[name]}"
        else:
            remembered = lru_cache(maxsize=8)(judge.features)
            return {
                other: score_mauve(
                    passages, words[name], lambda texts: remembered(tuple(texts)), self.options.seed, judge
                )
                for other, passages in words.items()
                if other != name
            }
        return {other: {"MAUVE": {"failed": why}} for other in rows}

    def _telemetry(self, judges: dict[str, AbstractJudge | str], text: Tensor | str | None) -> dict[str, Any]:
        """Statistics of corrections; with infilling of real text and with a sweep over strengths, if requested."""
        telemetry = self._revised(self.settings, self.samples, text)
        telemetry["eta_sweep"] = []
        for eta in self.options.eta_sweep:
            settings = replace(self.settings, eta=eta)
            samples = self.draw(settings, f"samples-eta-{eta:g}.jsonl")
            scores = score(
                [sample.written for sample in samples], [sample.text for sample in samples], judges
            )
            chosen = {
                name: value
                for name, value in scores.items()
                if name == "entropy" or name.startswith(PERPLEXITY)
            }
            telemetry["eta_sweep"].append({"eta": eta, **chosen, **self._revised(settings, samples, text)})
        return telemetry

    def _revised(
        self, settings: Settings, samples: list[Sample], text: Tensor | str | None
    ) -> dict[str, Any]:
        """Revised words in samples, and in real text with gaps."""
        report = {
            name: asdict(value) if isinstance(value, Estimate) else value
            for name, value in per_step([sample.revisions for sample in samples]).items()
        }
        share = self.options.infill
        if share is None or text is None:
            return {**report, "infilling": None}
        if isinstance(text, str):
            return {**report, "infilling": {"gaps": {"failed": text}}}
        words, size, bos = text, len(samples[0].tokens), self.checkpoint.tokenizer.vocabulary.bos

        def measure() -> dict[str, Estimate]:
            rows = canvases(words, len(samples), size, self.options.seed, bos)
            with share_bar("filling in", shown=self.progress) as bar:
                return fill_in(
                    self.checkpoint,
                    rows,
                    settings,
                    share=share,
                    seed=self.options.seed,
                    watch=lambda frame: bar(frame.share, "filling in"),
                )

        return {**report, "infilling": score_or_failure(("gaps",), measure)}


def _featured(judges: dict[str, AbstractJudge | str]) -> TransformersJudge | None:
    """The first judge that has features."""
    return next((judge for judge in judges.values() if isinstance(judge, TransformersJudge)), None)


def _write_all(folder: Path, document: Mapping[str, Any], samples: list[Sample] | None) -> None:
    """Results, report and picture, and the samples if they are given."""
    from hdlm.view.generation import draw_metrics, write_generation_report

    protocol.write_result(folder / "results.json", document)
    write_generation_report(folder / "report.md", document)
    draw_metrics(document, folder / "metrics.png")
    if samples is not None:
        both = [{"text": sample.text, "tokens": sample.tokens, "given": sample.given} for sample in samples]
        with replacing(folder / "samples.json") as aside:
            aside.write_text(json.dumps(both, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
