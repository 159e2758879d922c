"""The frontier: how likely a judge finds the text (generative perplexity) against how varied it is (entropy).

Each number alone is easy to improve: at a low temperature a sampler repeats itself and the judge gives a low
perplexity. A sweep over temperature or top-p shows the trade-off of each sampler or model (arXiv 2409.02908 asks for
both numbers). A sampler is better than another if its curve lies below at equal entropy.

Every point is a piece of work that is saved when it is done: its samples, then its scores. The file name of a piece is
a hash of all inputs. So a sweep resumes after an interruption, and a wider sweep measures only the new points.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, final, get_args

import torch

from hdlm.atomic import check_folder, keeping
from hdlm.checkpoint import Checkpoint
from hdlm.evaluation.generation.document import common_fields, price_of
from hdlm.evaluation.generation.judge import AbstractJudge, generative_perplexity
from hdlm.evaluation.generation.judges import judges_of
from hdlm.evaluation.generation.metrics import entropy
from hdlm.evaluation.generation.samples import draw_samples, drawn_with
from hdlm.evaluation.generation.scoring import PERPLEXITY, Scores, pieces, score_or_failure, text_of
from hdlm.evaluation.records import protocol
from hdlm.evaluation.text import Text, find_text, tokenize_documents
from hdlm.generation import Settings
from hdlm.progress import share_bar

__all__ = ["MEASURES", "FrontierOptions", "Sweep", "frontier_has_failed", "measured_frontier"]

MEASURES = ("entropy", PERPLEXITY)
"""The numbers of a point: the axes of the picture."""


@final
@dataclass(frozen=True, eq=False)
class Sweep:
    """The settings that all points of a picture share.

    Attributes:
        folder: The folder in which points are saved.
        judge: The judge of perplexity.
        num: Samples per point.
        seed: Seed of all random numbers. All points share it, so their differences are less noisy than the points.
        prompt: Text that all samples begin with.
        batch_size: Samples per batch; by default as many as fit.
        device: The device of the models; by default each model stays on its device.
    """

    folder: Path
    judge: AbstractJudge
    num: int
    seed: int = 0
    prompt: str = ""
    batch_size: int | None = None
    device: torch.device | str | None = None

    def point(
        self,
        checkpoint: Checkpoint,
        settings: Settings,
        watch: Callable[[int, float], None] | None = None,
    ) -> dict[str, Any]:
        """One point, measured now or read from its file.

        Args:
            checkpoint: The checkpoint of the model.
            settings: Settings of the sampler.
            watch: As in `draw_samples`.

        Returns:
            Entropy and generative perplexity, each with its error or the reason why there is none, and the cost.
        """
        drawn = drawn_with(checkpoint, settings, self.prompt, self.seed)
        scored = drawn | {"num": self.num, **self.judge.protocol_fields}
        kept = self.folder / f"{_name(scored)}.json"
        if kept.exists():
            return protocol.read_result(kept)
        samples = draw_samples(
            checkpoint,
            settings,
            prompt=self.prompt,
            num=self.num,
            batch_size=self.batch_size,
            seed=self.seed,
            device=self.device,
            keep=self.folder / f"{_name(drawn)}.jsonl",
            watch=watch,
        )
        scores = self._scores(
            [sample.written for sample in samples], [sample.text for sample in samples]
        ) | price_of(samples)
        if not any("failed" in scores[measure] for measure in MEASURES):
            with keeping(lambda: json.dumps(scores)):
                protocol.write_result(kept, scores)
        return scores

    def reference(self, checkpoint: Checkpoint, text: Text, length: int) -> Scores:
        """Scores of an equal amount of real text: the point of a perfect writer.

        Args:
            checkpoint: The checkpoint whose tokenizer made the tokens.
            text: The tokenised reference text.
            length: Tokens in a piece: the number of tokens of a sample that were not given.
        """
        tokenizer = checkpoint.tokenizer
        try:
            rows = pieces(text.tokens.long(), self.num, length, self.seed).tolist()
        except ValueError as error:
            return {measure: {"failed": str(error)} for measure in MEASURES}
        return self._scores(rows, [text_of(row, tokenizer) for row in rows])

    def _scores(self, rows: list[list[int]], texts: list[str]) -> Scores:
        return score_or_failure((MEASURES[0],), lambda: {MEASURES[0]: entropy(rows)}) | score_or_failure(
            (PERPLEXITY,),
            lambda: {PERPLEXITY: generative_perplexity(self.judge, texts)[PERPLEXITY]},
            **self.judge.protocol_fields,
        )


def _name(values: Mapping[str, Any]) -> str:
    """A file name that depends on every value."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:20]


@final
@dataclass(frozen=True)
class FrontierOptions:
    """What is swept, and over what.

    Attributes:
        swept: `"temperature"` or `"top_p"`.
        values: Values of what is swept; each is a point of every curve.
        judge: Folder or hub name of a causal language model, or name of a checkpoint, that judges perplexity.
        algorithms: Names of the samplers; each has a curve.
        prompt: Text that all samples begin with.
        num: Number of samples of a point.
        batch_size: Number of samples that are written at a time; by default as many as fit.
        seed: Seed of all randomness.
        reference: Real text, a point of its own: a data set by name, a file, a folder or a glob.
        data_dir: Folder of data sets; by default that of the environment, $HDLM_DATA_DIR.
        offline: Whether to use only files of the hub that are in its cache.

    Raises:
        ValueError: If nothing is swept.
    """

    swept: Literal["temperature", "top_p"]
    values: tuple[float, ...]
    judge: str
    algorithms: tuple[str, ...] = ("acs",)
    prompt: str = ""
    num: int = 50
    batch_size: int | None = None
    seed: int = 0
    reference: object = None
    data_dir: Path | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        if self.swept not in get_args(Literal["temperature", "top_p"]) or not self.values:
            raise ValueError(f"give values of temperature or of top_p; got {self.swept} {self.values}.")


def measured_frontier(
    models: Mapping[str, Checkpoint],
    settings: Settings,
    options: FrontierOptions,
    output: Path,
    *,
    weights: Any = "only",
    progress: bool | None = None,
) -> dict[str, Any]:
    """Measure all points, and write the document, a report and a picture into a folder; the result is the document.

    Args:
        models: The models by name, all with one tokenizer: entropy is over tokens.
        settings: Settings of the samplers, except for the swept one.
        options: The values to sweep over.
        output: The folder. Every point is saved there when it is done, and the same call resumes there.
        weights: Which weights were loaded, `"averaged"` or `"raw"`, if that is known.
        progress: Whether a progress bar is shown; by default in a terminal and in a notebook.

    Raises:
        ValueError: If the models cannot be compared, or there is no such judge.
    """
    from hdlm.view.frontier import write_frontier

    begin = time.perf_counter()
    check_folder(output / "points")
    checkpoint = _check_alike(models, settings.length)
    (judge,) = judges_of([options.judge], checkpoint.device, offline=options.offline).values()
    if isinstance(judge, str):
        raise ValueError(f"the judge {options.judge} cannot be used: {judge}")
    sweep = Sweep(
        output / "points",
        judge,
        options.num,
        options.seed,
        options.prompt,
        options.batch_size,
        checkpoint.device,
    )
    text = data = None
    if options.reference is not None:
        source = find_text(options.reference, folder=options.data_dir)
        text = tokenize_documents(checkpoint.tokenizer, source.corpus.documents())
        data = source.describe(text)
    curves = _curves(models, settings, options, sweep, progress)
    first = curves[0]["points"][0]
    reference = (
        None if text is None else sweep.reference(checkpoint, text, first["length"] - first["num_given"])
    )
    document = _document(models, settings, options, weights) | {
        **judge.protocol_fields,
        "data": data,
        "curves": curves,
        "reference": reference,
        "wall_seconds": round(time.perf_counter() - begin, 3),
    }
    with keeping(lambda: json.dumps(document)):
        protocol.write_result(output / "results.json", document)
        write_frontier(output, document)
    return document


def frontier_has_failed(document: Mapping[str, Any]) -> bool:
    """Whether a point of a frontier lacks one of its two numbers."""
    points = [point for curve in document["curves"] for point in curve["points"]]
    points += [document["reference"]] if document["reference"] else []
    return any("failed" in point[measure] for point in points for measure in MEASURES)


def _check_alike(models: Mapping[str, Checkpoint], length: int | None) -> Checkpoint:
    """The first model, if samples of all models can be compared.

    Raises:
        ValueError: If they cannot: tokenizers differ, or a length is needed to make their samples alike.
    """
    (first, reference), *others = models.items()
    for name, other in others:
        if other.tokenizer_json != reference.tokenizer_json:
            raise ValueError(
                f"{name} and {first} have different tokenizers: their entropies cannot be compared."
            )
        if length is None and other.length != reference.length:
            raise ValueError(
                f"{name} writes {other.length} tokens and {first} {reference.length}, and entropy depends on it: "
                "give a length."
            )
    return reference


def _curves(
    models: Mapping[str, Checkpoint],
    settings: Settings,
    options: FrontierOptions,
    sweep: Sweep,
    progress: bool | None,
) -> list[dict[str, Any]]:
    """The curve of every sampler of every model."""
    values, algorithms = sorted(set(options.values)), list(dict.fromkeys(options.algorithms))
    total = len(models) * len(algorithms) * len(values)
    done = 0
    curves = []
    with share_bar("writing", shown=progress) as bar:

        def watch(_: int, share: float) -> None:
            bar((done + share) / total, f"point {done + 1} of {total}")

        for model, checkpoint in models.items():
            for algorithm in algorithms:
                points = []
                for value in values:
                    here: dict[str, float] = {options.swept: value}
                    how = replace(settings, algorithm=algorithm, **here)  # type: ignore[arg-type]
                    points.append({**here, **sweep.point(checkpoint, how, watch)})
                    done += 1
                curves.append({"model": model, "algorithm": algorithm, "points": points})
    return curves


def _document(
    models: Mapping[str, Checkpoint], settings: Settings, options: FrontierOptions, weights: Any
) -> dict[str, Any]:
    """The fields that all points share, and the description of each model."""
    described = {
        name: protocol.describe_protocol(
            checkpoint, name, kind="generation", result={}, seed=options.seed, weights=weights
        )
        for name, checkpoint in models.items()
    }
    own = ("weights", "weights_sha256", "process", "parameterization", "dtype")
    first = next(iter(described.values()))
    return {
        "kind": "frontier",
        "swept": options.swept,
        "num_samples": options.num,
        "length": settings.length or next(iter(models.values())).length,
        "prompt": options.prompt,
        "settings": {name: getattr(settings, name) for name in ("eta", "hyperschedule", "width", "steps")},
        "models": {name: {key: checkpoint[key] for key in own} for name, checkpoint in described.items()},
        **common_fields(),
        **{key: first[key] for key in ("device", "seed", "versions", "tokenizer_sha256")},
    }
