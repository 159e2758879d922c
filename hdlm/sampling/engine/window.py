"""The cached keys and values of some sequences, and the positions that a call computes: a *window*.

A position with cached keys and values is computed again only if its answer is read, or its token has changed since. The
`Execution` determines which positions are cached, and for how long:

| | cached | recomputed | logits |
|---|---|---|---|
| exact cache | settled positions, whose visibility and noise never change | never | as without a cache |
| approximate, `active=False` | settled positions, although they see more and more | every `refresh` calls | change |
| approximate, `active=True` | all positions | every `refresh` calls, and once when settled | change |

The exact cache is off for a denoiser whose `noise_dependence` is `"sequence"`: its outputs at a settled position change
with the noise of the other positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.attention import DENSE_LIMIT, NOBODY, Visibility
from hdlm.denoiser import AbstractDenoiser, Prediction, Question
from hdlm.denoiser import ForwardContext as Asked
from hdlm.network import Previous
from hdlm.parameterization import NoiseDependence
from hdlm.regime import Regime, settled_lasts
from hdlm.sampling.base import Answer

_MOST_NUMBERS = 2**18
"""Positions times steps for which visibility and order are computed at a time."""

__all__ = ["ApproximateCache", "Execution", "KVWindow"]


@final
@dataclass(frozen=True)
class ApproximateCache:
    """Cache positions although they see other tokens than when they were computed. A heuristic: logits change.

    Settled positions keep the keys and values of the call after which they settled, where `context` is `"full"` and
    they see more and more positions (the prefix cache of Fast-dLLM, arXiv 2505.22618).

    With `active`, unsettled positions are cached as well, in any context: a call computes only the positions that are
    read and those whose token has changed (the dual cache of Fast-dLLM; dKV-Cache, 2505.15781; dLLM-Cache, 2506.06295).
    This saves time if all positions are written together.

    Attributes:
        refresh: Number of calls after which all positions with changed inputs are recomputed (at least 1, which is
            exact); None for never.
        active: Whether positions that are still being written are cached too.
    """

    refresh: int | None = None
    active: bool = False

    def __post_init__(self) -> None:
        if self.refresh is not None and self.refresh < 1:
            raise ValueError(f"`refresh` of an approximate cache must be at least 1; got {self.refresh}.")


@final
@dataclass(frozen=True)
class Execution:
    """How sequences are computed. It changes no token, unless the cache is approximate.

    Attributes:
        batch_size: Number of sequences that are computed at a time; all of them by default. If the denoiser packs
            queries, the next sequence takes the place of a finished one.
        first_sequence: Index of the first sequence: with 5, it is the sixth sequence of a longer run.
        together: Whether the sequences of a batch make every step at the same time. By default only if the denoiser
            does not pack queries; otherwise each sequence advances at its own pace, which saves calls.
        use_cache: Whether settled positions are computed once, where that is exact: it changes no logit. The cache is
            not used where settled positions see later ones (`context` is `"full"`), or where the noise of other
            positions is an input of the network; see `settled_lasts`.
        approximate: A cache that changes logits: for settled positions where there is no exact cache, or for all
            positions. Sequences that are `together` compute the same positions, so their tokens depend on the batch.
        device: Device of a denoiser without weights, by default the CPU. A denoiser with weights computes on their
            device, and refuses another device.

    Raises:
        ValueError: If a number is out of range, or there is an approximate cache without a cache.
    """

    batch_size: int | None = None
    first_sequence: int = 0
    together: bool | None = None
    use_cache: bool = True
    approximate: ApproximateCache | None = None
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1; got {self.batch_size}.")
        if self.approximate is not None and not self.use_cache:
            raise ValueError(
                "An approximate cache needs `use_cache=True`: leave `use_cache` on, or leave `approximate` out."
            )

    def check_cache(self, regime: Regime, dependence: NoiseDependence) -> None:
        """Refuse an approximate cache of settled positions where an exact cache is possible.

        Raises:
            ValueError: If an exact cache is possible.
        """
        approximate = self.approximate
        if approximate is not None and not approximate.active and settled_lasts(regime.context, dependence):
            raise ValueError(
                "An approximate cache of settled positions is for context='full'; with "
                f"context={regime.context!r} there is an exact one: leave `approximate` out, or remember active "
                "positions too (active=True)."
            )

    @property
    def keeps_active(self) -> bool:
        """Whether positions that are still being written are cached."""
        return self.approximate is not None and self.approximate.active

    def forgets(self, calls: int) -> bool:
        """Whether everything that is not exact is recomputed after this number of calls."""
        every = None if self.approximate is None else self.approximate.refresh
        return every is not None and calls % every == 0


@final
@dataclass(frozen=True)
class _Window:
    """The positions that a call computes.

    Attributes:
        chosen: Whether each position is computed.
        window: Indices of the computed positions.
        attention: Attention mask of the window.
        store: Places in the window of the positions that enter the cache.
        place: Place of each position in the answer, -1 for none.
        settled: Which of the computed positions are settled, for networks that read it.
    """

    chosen: Bool[Tensor, " l"]
    window: Int[Tensor, " q"]
    attention: Any
    store: Int[Tensor, " n"]
    place: Int[Tensor, "g l"]
    settled: Bool[Tensor, " q"] | None


@final
class KVWindow:
    """The keys and values of sequences that are always at one common step, and the windows that they compute.

    Args:
        denoiser: The denoiser to call.
        regime: When each position is noisy, and the attention.
        execution: Settings of the cache.
        fixed: Positions of each sequence that are given.
        length: Number of positions of a sequence.
        device: Device of the tokens.

    Attributes:
        num_evaluations: Number of network calls that included the sequences.
        num_computed: Number of positions of each sequence that these calls have computed in total.
    """

    def __init__(
        self,
        denoiser: AbstractDenoiser,
        regime: Regime,
        execution: Execution,
        *,
        fixed: Bool[Tensor, "g l"],
        length: int,
        device: torch.device,
    ) -> None:
        self.num_evaluations, self.num_computed = 0, 0
        self._denoiser, self._regime, self._execution = denoiser, regime, execution
        self._noiseless = denoiser.noise_dependence == "none"
        self._lasts = settled_lasts(regime.context, denoiser.noise_dependence)
        self._remembers = execution.use_cache and (self._lasts or execution.approximate is not None)
        self._beyond = torch.arange(regime.length, device=device) >= length
        self._cache: Any = denoiser.new_cache() if self._remembers else None
        self._order = torch.zeros(0, dtype=torch.long, device=device)  # positions in the order of the cache
        self._kept = torch.zeros_like(self._beyond)
        self._for_ever = torch.zeros_like(self._beyond)
        self._fixed = fixed
        self._tokens = torch.full(fixed.shape, -1, device=device)  # at the time of their computation
        self._num_steps = regime.hyperschedule.num_steps
        self._steps, self._asked = range(0), (-1, -1)
        self._repeated: _Window | None = None  # the next window, if nothing settles or opens until then
        self._place = torch.empty(0)  # of each position in the next answer, -1 for none
        self._answer: Answer | None = None

    @property
    def keeps_active(self) -> bool:
        """Whether a call computes as few positions as possible, also of those that are still being written."""
        return self._execution.keeps_active

    def cached_answer(self, n: int, x: Int[Tensor, "g l"]) -> Answer | None:
        """The last answer if it is still valid: noise is not an input, and tokens and visibility are unchanged."""
        if self._answer is None or not self._noiseless or self._asked != self._counts_at(n):
            return None
        return self._answer if torch.equal(x, self._tokens) else None

    def build_query(
        self,
        n: int,
        x: Int[Tensor, "g l"],
        u: Float[Tensor, "g l"],
        read: Bool[Tensor, "g l"],
        previous: Previous | None = None,
    ) -> Question:
        """The window to compute. `record` turns the prediction for it into an answer that covers the read positions.

        A shifted network predicts position `i` at position `i - 1`, which is computed with it, and is cached
        permanently only when `i` is settled.

        Args:
            n: Number of steps done.
            x: Tokens of the sequences.
            u: Noise fractions of the positions.
            read: The positions that will be read.
            previous: Distributions of the call before, for a self-conditioned network.
        """
        counts = self._counts_at(n)
        read = self._with_those_before(read[0] if len(read) == 1 else read.any(0))
        last = self._repeated if counts == self._asked and self._repeated is not None else None
        if last is None or bool((read > last.chosen).any()):
            self._repeated, last = None, self._window(n - self._steps.start, x, read)
            if not len(last.store) and self._execution.approximate is None:
                self._repeated = last
        self._asked, self._tokens = counts, x
        self._place = last.place
        self.num_evaluations += 1
        self.num_computed += len(last.window)
        # Positions whose predecessor is not in the window have no place, so the window counts as ordered.
        store = last.store if self._remembers else None
        before = None if previous is None else previous._replace(place=previous.place[:, last.window])
        given = self._fixed[:, last.window] if self._denoiser.reads_given else None
        asked = Asked(
            last.window[None],
            last.attention,
            self._cache,
            store,
            ordered=True,
            settled=last.settled,
            previous=before,
            given=given,
        )
        return Question(x[:, last.window], u[:, last.window], asked)

    def _window(self, row: int, x: Int[Tensor, "g l"], read: Bool[Tensor, " l"]) -> _Window:
        """The positions to compute so that the positions that are read have an answer."""
        settled, present, again = self._settled[row], self._present[row], read
        if (
            self._execution.keeps_active
        ):  # otherwise only settled positions are cached, whose tokens are final
            again = again | (x != self._tokens).any(0)
        if self._lasts:
            again = again | (settled > self._for_ever)
        if self._execution.forgets(self.num_evaluations):
            again = again | ~self._for_ever
        chosen = present & (again | ~self._kept)
        if len(self._order):
            self._forget(self._kept & chosen)
        window = chosen.nonzero()[:, 0]
        attention = self._attention(row, window, torch.cat([self._order, window]))
        store = self._keep(window, chosen, settled) if self._remembers else window[:0]
        places = self._places(x.shape[0], window, chosen)
        settled_here = settled[window] if self._denoiser.self_conditioned else None
        return _Window(chosen, window, attention, store, places, settled_here)

    def record(self, prediction: Prediction, begin: int) -> Answer:
        """The answer to the last query; its rows start at index `begin` of the prediction."""
        place = torch.where(self._place < 0, -1, self._place + begin) if begin else self._place
        self._answer = Answer(prediction, place)
        return self._answer

    def _counts_at(self, n: int) -> tuple[int, int]:
        """Number of settled positions and of present positions after some steps; neither ever decreases."""
        if n not in self._steps:
            self._prepare(n)
        settled, present = self._counts[n - self._steps.start]
        return settled, present

    def _prepare(self, n: int) -> None:
        """Compute which positions are settled, which exist, and their visibility, at some steps from `n` on."""
        most = max(1, min(self._num_steps - n + 1, _MOST_NUMBERS // len(self._beyond)))
        self._steps = range(n, n + most)
        steps = torch.arange(n, n + most, device=self._beyond.device)
        regions = self._regime.hyperschedule.regions(steps)
        self._settled, self._present = regions.settled, ~(regions.worthless | self._beyond)
        self._seen = self._regime.generation_attention(steps, regions)
        self._counts = torch.stack([self._settled, self._present]).sum(2).T.tolist()

    def _attention(self, row: int, window: Int[Tensor, " q"], keys: Int[Tensor, " k"]) -> Any:
        """Attention mask of a window; None if every position sees every other."""
        query_rank, key_rank = self._seen.query_rank[row], self._seen.key_rank[row]
        if window.device.type != "cpu" and len(window) * len(keys) > DENSE_LIMIT:
            first, nobody = torch.zeros_like(key_rank), torch.full_like(key_rank, NOBODY)
            return (
                Visibility(query_rank, key_rank, first, nobody, nobody).select(window, keys).on(window.device)
            )
        may = key_rank[keys] <= query_rank[window][:, None]
        return None if bool(may.all()) else may[None]

    def _forget(self, positions: Bool[Tensor, " l"]) -> None:
        """Remove positions from the cache; the last remaining ones fill the gaps."""
        gone = positions[self._order]
        stay = len(gone) - int(gone.sum())
        if stay == len(gone):
            return
        places = torch.arange(len(gone), device=gone.device)
        places[:stay][gone[:stay]] = places[stay:][~gone[stay:]]
        self._denoiser.retain(self._cache, places[:stay])
        self._order = self._order[places[:stay]]
        self._kept &= ~positions

    def _keep(
        self, window: Int[Tensor, " q"], chosen: Bool[Tensor, " l"], settled: Bool[Tensor, " l"]
    ) -> Int[Tensor, " n"]:
        """Record which positions of a window will be cached, and return their places in it."""
        done = settled & chosen
        for ahead in range(1, self._denoiser.lookback + 1):
            done = done & torch.nn.functional.pad(settled[ahead:], (0, ahead), value=True)
        keep = chosen if self._execution.keeps_active else done
        store = keep[window].nonzero()[:, 0]
        if len(store):
            self._order = torch.cat([self._order, window[store]])
            self._kept |= keep
        if self._lasts:
            self._for_ever |= done
        return store

    def _places(self, size: int, window: Int[Tensor, " q"], chosen: Bool[Tensor, " l"]) -> Int[Tensor, "g l"]:
        """Place of each position in the answer; -1 where a shifted network lacks the position before."""
        spoken = chosen
        for behind in range(1, self._denoiser.lookback + 1):
            spoken = spoken & torch.nn.functional.pad(chosen[:-behind], (behind, 0), value=True)
        begins = torch.arange(size, device=window.device)[:, None] * len(window)
        return (begins + chosen.cumsum(0) - 1).masked_fill(~spoken, -1)

    def _with_those_before(self, read: Bool[Tensor, " l"]) -> Bool[Tensor, " l"]:
        """The positions that are read, and the positions at which a shifted network predicts them."""
        needed = read
        for behind in range(1, self._denoiser.lookback + 1):
            needed = needed | torch.nn.functional.pad(read[behind:], (0, behind))
        return needed
