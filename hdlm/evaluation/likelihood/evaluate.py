"""Measure how well a checkpoint predicts a text, in one call: `hdlm.evaluate.likelihood` and the command.

The checkpoint supplies the defaults: hyperschedules, noise schedule, context, device. With a folder, the document of
the result is written after every piece of replicates, and the same call resumes an interrupted measurement.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from hdlm.atomic import check_folder, keeping
from hdlm.checkpoint import Checkpoint
from hdlm.distributed import ALONE, Processes
from hdlm.evaluation.likelihood.defaults import plan_of
from hdlm.evaluation.likelihood.result import BoundName, Estimator
from hdlm.evaluation.likelihood.resumable import BatchSize, Measuring
from hdlm.evaluation.records import protocol
from hdlm.evaluation.text import find_text, tokenize_documents
from hdlm.progress import share_bar

__all__ = ["FILES", "LikelihoodOptions", "likelihood_document"]

FILE = "results.json"
FILES = (FILE, "report.md", "replicates.png")
"""Files that a measurement writes into its folder."""


@final
@dataclass(frozen=True)
class LikelihoodOptions:
    """How a text is measured. None leaves a choice to the checkpoint.

    Attributes:
        part: Part of a named data set.
        data_dir: Folder of data sets; by default that of the environment, $HDLM_DATA_DIR.
        detokenize: Whether to undo the tokenisation of named data sets that are distributed as tokenised text.
        limit: Approximate number of tokens to measure, for a quick estimate; all by default.
        length: Number of tokens in a window; the model's context by default.
        stride: Number of new tokens in each window; below the length, windows overlap.
        within_documents: Whether to give each document windows of its own.
        bound: `"absorbing"`, the bound of the paper (default, where noise ends in masks), or `"hybrid"`, that of the
            process itself.
        estimator: How the bound is estimated; by default the estimator with the least variance that fits.
        replicates: Number of independent estimates.
        target_error: Standard error in bits per token at which the measurement ends, instead of a number of estimates.
        hyperschedule: The family to measure along: autoregressive, flat, block, slide or wave; by default the one that
            the checkpoint lists first.
        width: Number of positions that are noisy together.
        steps: Number of steps that each position takes from noise to word.
        batch_size: Number of windows in a pass, halved when memory does not suffice; found automatically by default.
        seed: Seed of all random numbers.
    """

    part: str = "test"
    data_dir: Path | None = None
    detokenize: bool = True
    limit: int | None = None
    length: int | None = None
    stride: int | None = None
    within_documents: bool = False
    bound: BoundName | None = None
    estimator: Estimator | None = None
    replicates: int = 8
    target_error: float | None = None
    hyperschedule: str | None = None
    width: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    seed: int = 0


def likelihood_document(
    checkpoint: Checkpoint,
    text: object,
    options: LikelihoodOptions,
    *,
    model: str = "a checkpoint",
    weights: Any = "only",
    output: Path | None = None,
    before: Mapping[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda document: None,
    processes: Processes = ALONE,
    progress: bool | None = None,
) -> dict[str, Any]:
    """The document of a measured likelihood; see `hdlm.evaluation.records.protocol`.

    Args:
        checkpoint: The checkpoint of the model.
        text: The text, as for `hdlm.evaluation.text.find_text`.
        options: Options of the measurement.
        model: Name of the model in the document.
        weights: Which weights were loaded, `"averaged"` or `"raw"`, if that is known.
        output: Folder for the document, a report and a picture; a measurement in it is resumed.
        before: A document of earlier replicates, which are used if it belongs to this measurement.
        keep: Called with the document after every piece of replicates.
        processes: The processes that share the work.
        progress: Whether a progress bar is shown; by default in a terminal and in a notebook.

    Raises:
        ValueError: If the text cannot be used, an option is out of range or does not fit the model, or the folder
            holds another measurement.
    """
    from hdlm.view.likelihood import write_likelihood

    if output is not None:
        check_folder(output, *FILES)
    measuring = _measuring(checkpoint, text, options, model, weights, processes)
    name = str(text) if isinstance(text, str | Path) else str(measuring.data["name"])
    known = measuring.known(before) if before is not None and measuring.is_of(before) else None
    if output is not None and (output / FILE).exists():
        try:
            known = measuring.known(protocol.read_result(output / FILE))
        except ValueError as error:
            raise ValueError(f"{output / FILE}: {error} Choose another output folder.") from error
    now = f"measuring {name}"
    with share_bar(now, shown=progress if processes.is_main else False) as bar:

        def keep_all(document: dict[str, Any]) -> None:
            nonlocal now
            keep(document)
            bits, error = (document["result"][key] for key in ("bits_per_token", "bits_per_token_error"))
            now = f"{name}: {bits:.4f}" + (f" ± {error:.4f}" if error else "") + " bits per token"
            if output is not None and processes.is_main:
                with keeping(lambda: json.dumps({name: document})):
                    protocol.write_result(output / FILE, document)
                    write_likelihood(output, name, document)

        measuring.watch = lambda passed: bar(passed.done / passed.total, now)
        return measuring.run(
            replicates=options.replicates, target=options.target_error, known=known, keep=keep_all
        )


def _measuring(
    checkpoint: Checkpoint,
    text: object,
    options: LikelihoodOptions,
    model: str,
    weights: Any,
    processes: Processes,
) -> Measuring:
    """The measurement that the options describe."""
    plan = plan_of(
        checkpoint,
        options.length,
        hyperschedule=options.hyperschedule,
        width=options.width,
        steps=options.steps,
    )
    source = find_text(text, options.part, options.data_dir, detokenize=options.detokenize)
    read = tokenize_documents(checkpoint.tokenizer, source.corpus.documents(), options.limit)
    return Measuring(
        checkpoint,
        model,
        read,
        source.describe(read),
        plan,
        options.bound,
        options.estimator,
        options.stride,
        options.within_documents,
        weights,
        seed=options.seed,
        batch_size=None if options.batch_size is None else BatchSize(options.batch_size),
        processes=processes,
    )
