"""The keys and values that are kept of some sequences, and what a call computes: a *window* of positions.

A position whose keys and values are kept is computed again only if somebody reads the answer there, or its token has
changed since. What is kept, and for how long, depends on the `Execution`:

| | kept | computed anew | logits |
|---|---|---|---|
| exact cache | what has settled, where its view and its noise never change | never | those of no cache |
| approximate, `active=False` | what has settled, though its view grows | every `refresh` calls | change |
| approximate, `active=True` | everything | every `refresh` calls, and once it has settled | change |

The exact cache is off for a denoiser whose `noise_dependence` is `"sequence"`: what it computes of a settled position
changes with the noise of the others.
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
from hdlm.parameterization import NoiseDependence
from hdlm.regime import Regime, settled_lasts
from hdlm.sampling.base import Answer

_MOST_NUMBERS = 2**18
"""Positions times steps for which regions and ranks are computed at a time."""

__all__ = ["ApproximateCache", "Execution", "KVWindow"]


@final
@dataclass(frozen=True)
class ApproximateCache:
    """Remember positions although what they see has changed since they were computed. A heuristic: logits change.

    Settled positions keep the keys and values of the call after which they settled, where `context` is `"full"` and
    their view grows (the prefix cache of Fast-dLLM, arXiv 2505.22618).

    With `active`, those that are still being written keep theirs as well, in any context: a call computes only the
    positions that are read and those whose token has changed (the dual cache of Fast-dLLM; dKV-Cache, 2505.15781;
    dLLM-Cache, 2506.06295). That is what saves time where all positions are written together.

    Attributes:
        refresh: Everything whose view has changed is computed anew at every so many calls (at least 1, which is
            exact); None for never.
        active: Whether positions that are still being written are remembered too.
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
        batch_size: How many sequences are computed at a time; all of them by default. Where the denoiser packs
            questions, a sequence that is finished gives way to the next.
        first_sequence: Index of the first sequence: 5 gives what a longer run has as its sixth.
        together: Whether the sequences of a batch make every step at the same time. By default only where the denoiser
            does not pack questions; else each sequence has a pace of its own, which saves calls.
        use_cache: Whether settled positions are computed once, where that is exact: it changes no logit. It is not done
            where settled positions see later ones (`context` is `"full"`), or where the noise of other positions is
            among the network's inputs; see `settled_lasts`.
        approximate: A cache that does change logits: of settled positions where there is no exact one, or of all.
            Sequences that are `together` are computed at the same positions, so then tokens depend on the batch.
        device: Where a denoiser without weights computes, by default on the CPU. One with weights computes where they
            are, and refuses another device.

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
            raise ValueError("An approximate cache is a cache: leave `use_cache` on, or `approximate` out.")

    def check_cache(self, regime: Regime, dependence: NoiseDependence) -> None:
        """Refuse an approximate cache of settled positions where there is an exact one.

        Raises:
            ValueError: If that is so.
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
        """Whether positions that are still being written are remembered."""
        return self.approximate is not None and self.approximate.active

    def forgets(self, calls: int) -> bool:
        """Whether all that is not exact is to be computed anew after so many calls."""
        every = None if self.approximate is None else self.approximate.refresh
        return every is not None and calls % every == 0


@final
@dataclass(frozen=True)
class _Window:
    """What a call computes.

    Attributes:
        chosen: Whether each position is computed.
        window: The positions that are.
        attention: Who sees whom.
        store: Places in the window of those that enter the cache.
        place: Place of each position in the answer, -1 for none.
    """

    chosen: Bool[Tensor, " l"]
    window: Int[Tensor, " q"]
    attention: Any
    store: Int[Tensor, " n"]
    place: Int[Tensor, "g l"]


@final
class KVWindow:
    """The keys and values of sequences that are always at the same step, and the windows that they compute.

    Args:
        denoiser: The network.
        regime: When each position is noisy, and who sees whom.
        execution: What is remembered.
        size: How many sequences.
        length: How many of their positions there are.
        device: Where their tokens live.

    Attributes:
        num_evaluations: How many calls of the network they took part in.
        num_computed: How many positions of each sequence these calls have computed in all.
    """

    def __init__(
        self,
        denoiser: AbstractDenoiser,
        regime: Regime,
        execution: Execution,
        *,
        size: int,
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
        self._order = torch.zeros(0, dtype=torch.long, device=device)  # positions as the cache has them
        self._kept = torch.zeros_like(self._beyond)
        self._for_ever = torch.zeros_like(self._beyond)
        self._tokens = torch.full((size, regime.length), -1, device=device)  # as they were computed
        self._num_steps = regime.hyperschedule.num_steps
        self._steps, self._asked = range(0), (-1, -1)
        self._repeated: _Window | None = None  # the next window, if nothing settles or opens until then
        self._place = torch.empty(0)  # of each position in the answer that is awaited, -1 for none
        self._answer: Answer | None = None

    @property
    def keeps_active(self) -> bool:
        """Whether a call computes no more than it must, of positions that are still being written too."""
        return self._execution.keeps_active

    def cached_answer(self, n: int, x: Int[Tensor, "g l"]) -> Answer | None:
        """The last answer, if it is still valid: no noise is among the inputs, and tokens and view are the same."""
        if self._answer is None or not self._noiseless or self._asked != self._counts_at(n):
            return None
        return self._answer if torch.equal(x, self._tokens) else None

    def build_query(
        self, n: int, x: Int[Tensor, "g l"], u: Float[Tensor, "g l"], read: Bool[Tensor, "g l"]
    ) -> Question:
        """The window to compute, so that the answer, which is for `record`, is one for the positions that are read.

        A shifted network reads position `i` off position `i - 1`: that one is computed with it, and remembered for
        ever only when `i` is settled.

        Args:
            n: Steps done.
            x: Tokens.
            u: Noise fractions.
            read: The positions that will be read.
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
        asked = Asked(last.window[None], last.attention, self._cache, store, ordered=True)
        return Question(x[:, last.window], u[:, last.window], asked)

    def _window(self, row: int, x: Int[Tensor, "g l"], read: Bool[Tensor, " l"]) -> _Window:
        """The positions to compute so that those that are read have an answer."""
        settled, present, again = self._settled[row], self._present[row], read
        if self._execution.keeps_active:  # else only settled positions are kept, whose tokens are final
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
        return _Window(chosen, window, attention, store, self._places(x.shape[0], window, chosen))

    def record(self, prediction: Prediction, begin: int) -> Answer:
        """The answer to the last query, which begins at a place of the prediction."""
        place = torch.where(self._place < 0, -1, self._place + begin) if begin else self._place
        self._answer = Answer(prediction, place)
        return self._answer

    def _counts_at(self, n: int) -> tuple[int, int]:
        """How many positions are settled after some steps, and how many are not there; neither ever falls."""
        if n not in self._steps:
            self._prepare(n)
        settled, present = self._counts[n - self._steps.start]
        return settled, present

    def _prepare(self, n: int) -> None:
        """Compute who is settled, who is there and who sees whom at some steps from `n` on."""
        most = max(1, min(self._num_steps - n + 1, _MOST_NUMBERS // len(self._beyond)))
        self._steps = range(n, n + most)
        steps = torch.arange(n, n + most, device=self._beyond.device)
        regions = self._regime.hyperschedule.regions(steps)
        self._settled, self._present = regions.settled, ~(regions.worthless | self._beyond)
        self._seen = self._regime.generation_attention(steps, regions)
        self._counts = torch.stack([self._settled, self._present]).sum(2).T.tolist()

    def _attention(self, row: int, window: Int[Tensor, " q"], keys: Int[Tensor, " k"]) -> Any:
        """Who sees whom in a window; None if everybody sees everybody."""
        query_rank, key_rank = self._seen.query_rank[row], self._seen.key_rank[row]
        if window.device.type != "cpu" and len(window) * len(keys) > DENSE_LIMIT:
            first, nobody = torch.zeros_like(key_rank), torch.full_like(key_rank, NOBODY)
            return (
                Visibility(query_rank, key_rank, first, nobody, nobody).select(window, keys).on(window.device)
            )
        may = key_rank[keys] <= query_rank[window][:, None]
        return None if bool(may.all()) else may[None]

    def _forget(self, positions: Bool[Tensor, " l"]) -> None:
        """Take positions out of the cache; the last ones that stay fill the gaps."""
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
        """Note which positions of a window will be remembered; their places in it."""
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
        """Place of each position in the answer; -1 where a shifted network misses the position before."""
        spoken = chosen
        for behind in range(1, self._denoiser.lookback + 1):
            spoken = spoken & torch.nn.functional.pad(chosen[:-behind], (behind, 0), value=True)
        begins = torch.arange(size, device=window.device)[:, None] * len(window)
        return (begins + chosen.cumsum(0) - 1).masked_fill(~spoken, -1)

    def _with_those_before(self, read: Bool[Tensor, " l"]) -> Bool[Tensor, " l"]:
        """The positions that are read, and those off which a shifted network reads them."""
        found = read
        for behind in range(1, self._denoiser.lookback + 1):
            found = found | torch.nn.functional.pad(read[behind:], (0, behind))
        return found
