"""A long measurement that can be interrupted: in pieces of replicates, with a batch size that fits.

    Measuring(checkpoint, text, ...)     the measurement; its document, before anything has been measured
        .measure(first, count)             some replicates, shared among the processes
        .run(replicates or target, keep)   a number of replicates, or enough for the target; `keep` gets every piece

Replicates are functions of their numbers, so pieces can be joined independently of the process that measured them. Nats
are added, never perplexities.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar, final

import torch

from hdlm.checkpoint import Checkpoint
from hdlm.distributed import ALONE, Processes
from hdlm.evaluation.likelihood.defaults import bound_of
from hdlm.evaluation.likelihood.estimator import EvaluationProgress, Likelihood
from hdlm.evaluation.likelihood.precision import until_precise
from hdlm.evaluation.likelihood.result import BoundName, Estimator, LikelihoodResult
from hdlm.evaluation.likelihood.windows import WindowedText
from hdlm.evaluation.records.protocol import describe_protocol, differences
from hdlm.evaluation.text import Text
from hdlm.hyperschedule import AbstractHyperschedule

__all__ = ["BatchSize", "Measuring"]

_Result = TypeVar("_Result")
Keep = Callable[[dict[str, Any]], None]

POSITIONS: Mapping[str, int] = {"cpu": 1 << 12}
"""Positions in a pass at first, by the kind of device."""
_POSITIONS_ELSEWHERE = 1 << 16
_PIECE = 1024
"""Minimum number of windows in a piece: about what an interruption may lose."""


@final
@dataclass
class BatchSize:
    """A batch size that is halved when memory runs out.

    Attributes:
        size: Windows per forward pass.
    """

    size: int

    @classmethod
    def automatic(cls, length: int, device: torch.device) -> BatchSize:
        """A batch size with about as many positions as keep a device busy."""
        return cls(max(POSITIONS.get(device.type, _POSITIONS_ELSEWHERE) // length, 1))

    def fit(self, work: Callable[[int], _Result]) -> _Result:
        """Call `work` with this batch size, or with the next smaller one for which memory suffices.

        Raises:
            ValueError: If memory does not suffice for a single window.
        """
        while True:
            try:
                return work(self.size)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
            if self.size == 1:
                raise ValueError(
                    f"memory does not suffice for a single window: {reason}. Use shorter windows (--length)."
                )
            self.size //= 2


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@final
@dataclass(eq=False)
class Measuring:
    """The measurement of a text under a model.

    Attributes:
        checkpoint: The checkpoint of the model.
        model: The user's name for the model.
        text: The text to measure.
        data: The result of `describe_data` for the text.
        plan: The hyperschedule of the windows.
        bound: Name of the bound; by default the paper's, where it fits the model.
        estimator: Name of the estimator; by default the one with the least variance.
        stride: New tokens in each window; all by default.
        within_documents: Whether each document has windows of its own.
        weights: Name of the weights that were requested.
        seed: Seed of all random numbers.
        batch_size: Windows per forward pass; found automatically by default.
        processes: The processes that share the work.
        watch: Called with the progress of a piece.

    Raises:
        ValueError: If the windows are longer than the model's context, or as `estimate_likelihood`.
    """

    checkpoint: Checkpoint
    model: str
    text: Text
    data: Mapping[str, Any]
    plan: AbstractHyperschedule
    bound: BoundName | None = None
    estimator: Estimator | None = None
    stride: int | None = None
    within_documents: bool = False
    weights: Any = "only"
    seed: int = 0
    batch_size: BatchSize | None = None
    processes: Processes = ALONE
    watch: Callable[[EvaluationProgress], None] | None = None
    _seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if self.plan.length > self.checkpoint.length:
            raise ValueError(
                f"windows may have up to {self.checkpoint.length} tokens, the model's context; got {self.plan.length}."
            )

    @cached_property
    def likelihood(self) -> Likelihood:
        """The settings for measuring the text."""
        denoiser = self.checkpoint.denoiser
        bound = self.bound or bound_of(denoiser.process)
        return Likelihood(denoiser, self.checkpoint.regime(self.plan), bound, self.estimator, self.seed)

    @cached_property
    def windows(self) -> WindowedText:
        """The text and its windows."""
        documents = self.text.lengths if self.within_documents else None
        return WindowedText(
            self.text.tokens, self.plan.length, self.stride, documents, num_bytes=self.text.num_bytes
        )

    @cached_property
    def outline(self) -> LikelihoodResult:
        """The protocol of the result before the measurement."""
        return self.likelihood.outline(self.windows)

    @cached_property
    def _frame(self) -> dict[str, Any]:
        return describe_protocol(
            self.checkpoint,
            self.model,
            kind="likelihood",
            result={},
            seed=self.seed,
            weights=self.weights,
            data=self.data,
        )

    def document(self, result: LikelihoodResult | None = None) -> dict[str, Any]:
        """The document of a result; without a result, of the outline."""
        described = self.outline if result is None else result
        return self._frame | {"result": described.to_dict(), "wall_seconds": round(self._seconds, 3)}

    def is_of(self, document: Mapping[str, Any] | None) -> bool:
        """Whether a document belongs to this measurement, so that it can be resumed."""
        return document is not None and "result" in document and not differences(document, self.document())

    def known(self, document: Mapping[str, Any]) -> LikelihoodResult:
        """The earlier result in a document, from which the measurement resumes.

        Raises:
            ValueError: If its protocol is different.
        """
        apart = differences(document, self.document())
        if apart:
            changes = "; ".join(f"{name} was {was!r}, now {now!r}" for name, (was, now) in apart.items())
            raise ValueError(f"there is a result of another measurement: {changes}.")
        self._seconds = float(document.get("wall_seconds", 0.0))
        return LikelihoodResult.from_dict(document["result"])

    def measure(self, first: int, count: int) -> LikelihoodResult:
        """Replicates `first .. first + count - 1`, shared among the processes."""
        begun = time.perf_counter()
        exact = self.outline.estimator == "exact"
        start, share = self.processes.share(1 if exact else count)
        batch = self.batch_size or BatchSize.automatic(self.plan.length, self.checkpoint.device)
        self.batch_size = batch
        own: tuple[float, ...] = ()
        if share:
            own = batch.fit(
                lambda size: self.likelihood.of_text(
                    self.windows, share, first_replicate=first + start, batch_size=size, watch=self.watch
                )
            ).estimates
        estimates = self.processes.gather(own)
        self._seconds += time.perf_counter() - begun
        return replace(self.outline, estimates=estimates)

    def run(
        self,
        *,
        replicates: int | None = None,
        target: float | None = None,
        most: int = 1024,
        known: LikelihoodResult | None = None,
        keep: Keep = lambda document: None,
    ) -> dict[str, Any]:
        """Measure, and return the document of the result.

        Args:
            replicates: Number of independent estimates in total.
            target: Standard error to reach instead, in bits per token.
            most: Maximum number of replicates for the target.
            known: Earlier replicates, from number 0 on.
            keep: Called with the document so far after every piece.

        Raises:
            ValueError: If the target is not reached, or as in `estimate_likelihood`.
        """
        if target is None:
            return self.document(self._repeat(replicates or 0, known, keep))
        measured = until_precise(
            self.measure, target, most=most, known=known, keep=lambda result: keep(self.document(result))
        )
        return self.document(measured)

    def _repeat(self, replicates: int, known: LikelihoodResult | None, keep: Keep) -> LikelihoodResult:
        """Measure a number of replicates in pieces."""
        if replicates < 1:
            raise ValueError(
                f"give a number of replicates, at least 1, or an error to reach; got {replicates}."
            )
        outline = self.outline
        wanted = 1 if outline.estimator == "exact" else replicates
        piece = -(-_PIECE // outline.num_windows) * self.processes.count
        result = known
        while result is None or result.replicates < wanted:
            have = 0 if result is None else result.replicates
            more = self.measure(have, min(piece, wanted - have))
            result = more if result is None else result.with_replicates_of(more)
            keep(self.document(result))
        return result
