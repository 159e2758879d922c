"""What the network remembers of some sequences, and what it computes when it is asked: a *window* of positions.

A position whose keys and values are kept is computed again only if somebody reads the answer there, or its token has
changed since. What is kept, and for how long, is a matter of the `View`:

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

from hdlm.attention import Active, Context, generation
from hdlm.denoiser import AbstractDenoiser, Prediction, Question
from hdlm.denoiser import Context as Asked
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.parameterization import NoiseDependence
from hdlm.sampling.base import Answer

__all__ = ["ApproximateCache", "Memory", "View", "settled_lasts"]


def settled_lasts(context: Context, dependence: NoiseDependence) -> bool:
    """Whether the keys and values of a settled position never change, so that keeping them is exact.

    Args:
        context: What settled positions see of one another.
        dependence: What the network's inputs depend on.
    """
    return context != "full" and dependence != "sequence"


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
class View:
    """Who sees whom, and what is remembered.

    Attributes:
        context: What settled positions see of one another.
        active: What active positions see of one another.
        use_cache: Whether settled positions are computed once, where that is exact: it changes no logit. It is not done
            where settled positions see later ones (`context` is `"full"`), or where the noise of other positions is
            among the network's inputs; see `settled_lasts`.
        approximate: What is remembered beyond that.
    """

    context: Context = "block_causal"
    active: Active = "full"
    use_cache: bool = True
    approximate: ApproximateCache | None = None

    def __post_init__(self) -> None:
        if self.approximate is not None and not self.use_cache:
            raise ValueError("An approximate cache is a cache: leave `use_cache` on, or `approximate` out.")

    def check(self, denoiser: AbstractDenoiser) -> None:
        """Refuse an approximate cache of settled positions where there is an exact one.

        Raises:
            ValueError: If that is so.
        """
        approximate = self.approximate
        if approximate is not None and not approximate.active and self.lasts(denoiser):
            raise ValueError(
                "An approximate cache of settled positions is for context='full'; with "
                f"context={self.context!r} there is an exact one: leave `approximate` out, or remember active "
                "positions too (active=True)."
            )

    def remembers(self, denoiser: AbstractDenoiser) -> bool:
        """Whether there is a cache, exact or not."""
        return self.use_cache and (self.lasts(denoiser) or self.approximate is not None)

    def lasts(self, denoiser: AbstractDenoiser) -> bool:
        """Whether what a denoiser computes of a settled position never changes."""
        return settled_lasts(self.context, denoiser.noise_dependence)

    @property
    def keeps_active(self) -> bool:
        """Whether positions that are still being written are remembered."""
        return self.approximate is not None and self.approximate.active

    def forgets(self, calls: int) -> bool:
        """Whether all that is not exact is to be computed anew after so many calls."""
        every = None if self.approximate is None else self.approximate.refresh
        return every is not None and calls % every == 0


@final
class Memory:
    """What is remembered of sequences that are always at the same step, whose windows are the same.

    Args:
        denoiser: Who is asked.
        hyperschedule: When each position is noisy.
        view: Who sees whom, and what is remembered.
        size: How many sequences.
        length: How many of their positions there are.
        device: Where their tokens live.

    Attributes:
        num_evaluations: How often the network was asked about them.
        num_computed: How many positions of each sequence it has computed in all.
    """

    def __init__(
        self,
        denoiser: AbstractDenoiser,
        hyperschedule: AbstractHyperschedule,
        view: View,
        *,
        size: int,
        length: int,
        device: torch.device,
    ) -> None:
        self.num_evaluations, self.num_computed = 0, 0
        self._denoiser, self._hyperschedule, self._view = denoiser, hyperschedule, view
        self._noiseless = denoiser.noise_dependence == "none"
        self._lasts, self._remembers = view.lasts(denoiser), view.remembers(denoiser)
        self._beyond = torch.arange(hyperschedule.length, device=device) >= length
        self._cache: Any = denoiser.new_cache() if self._remembers else None
        self._order = torch.zeros(0, dtype=torch.long, device=device)  # positions as the cache has them
        self._kept = torch.zeros_like(self._beyond)
        self._for_ever = torch.zeros_like(self._beyond)
        self._tokens = torch.full((size, hyperschedule.length), -1, device=device)  # as they were computed
        self._n, self._asked = -1, (-1, -1)
        self._look(0)
        self._place = torch.empty(0)  # of each position in the answer that is awaited, -1 for none
        self._answer: Answer | None = None

    @property
    def keeps_active(self) -> bool:
        """Whether a call computes no more than it must, of positions that are still being written too."""
        return self._view.keeps_active

    def recall(self, n: int, x: Int[Tensor, "g l"]) -> Answer | None:
        """The last answer, if it is still valid: no noise is among the inputs, and tokens and view are the same."""
        if self._answer is None or not self._noiseless:
            return None
        self._look(n)
        return self._answer if self._asked == self._counts and torch.equal(x, self._tokens) else None

    def question(
        self, n: int, x: Int[Tensor, "g l"], u: Float[Tensor, "g l"], read: Bool[Tensor, "g l"]
    ) -> Question:
        """What to ask the network, so that its answer, which is for `hear`, speaks of the positions that are read.

        A shifted network reads position `i` off position `i - 1`: that one is computed with it, and remembered for
        ever only when `i` is settled.

        Args:
            n: Steps done.
            x: Tokens.
            u: Noise fractions.
            read: The positions that will be read.
        """
        self._look(n)
        settled, absent = self._settled, self._absent
        again = (x != self._tokens).any(0) | self._with_those_before(read.any(0))
        if self._lasts:
            again |= settled & ~self._for_ever
        if self._view.forgets(self.num_evaluations):
            again |= ~self._for_ever
        chosen = ~absent & (again | ~self._kept)
        self._forget(self._kept & chosen)
        window = chosen.nonzero()[:, 0]
        seen = generation(self._hyperschedule, self._step, self._view.context, self._view.active)
        attention = seen.select(window, torch.cat([self._order, window])).on(x.device)
        store = self._keep(window, chosen, settled) if self._remembers else None
        self._expect(x, window, chosen)
        self._asked = self._counts
        asked = Asked(window[None], attention, self._cache, store, ordered=True)  # `_expect` sees to that
        return Question(x[:, window], u[:, window], asked)

    def hear(self, prediction: Prediction, begin: int) -> Answer:
        """The answer to the last question, which begins somewhere in what the network says."""
        self._answer = Answer(prediction, torch.where(self._place < 0, -1, self._place + begin))
        return self._answer

    def _look(self, n: int) -> None:
        """See which positions are settled after some steps, and which are not there."""
        if n == self._n:
            return
        self._n, self._step = n, torch.tensor(n, device=self._beyond.device)
        regions = self._hyperschedule.regions(self._step)
        self._settled, self._absent = regions.settled, regions.worthless | self._beyond
        settled, absent = torch.stack([self._settled, self._absent]).sum(1).tolist()
        self._counts = settled, absent  # neither ever falls

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
        done = settled.clone()
        for ahead in range(1, self._denoiser.lookback + 1):
            done[:-ahead] &= settled[ahead:]
        keep = chosen if self._view.keeps_active else chosen & done
        store = keep[window].nonzero()[:, 0]
        self._order = torch.cat([self._order, window[store]])
        self._kept |= keep
        if self._lasts:
            self._for_ever |= chosen & done
        return store

    def _expect(self, x: Int[Tensor, "g l"], window: Int[Tensor, " q"], chosen: Bool[Tensor, " l"]) -> None:
        """Note what is asked; there is no answer where a shifted network misses the position before."""
        spoken = chosen.clone()
        for behind in range(1, self._denoiser.lookback + 1):
            spoken[behind:] &= chosen[:-behind]
        place = torch.arange(x.shape[0] * len(window), device=x.device).view(-1, len(window))
        self._place = x.new_full(x.shape, -1)
        self._place[:, window] = torch.where(spoken[window], place, -1)
        self._tokens = x.clone()
        self.num_evaluations += 1
        self.num_computed += len(window)

    def _with_those_before(self, read: Bool[Tensor, " l"]) -> Bool[Tensor, " l"]:
        """The same, and the positions off which a shifted network reads them."""
        found = read.clone()
        for behind in range(1, self._denoiser.lookback + 1):
            found[:-behind] |= read[behind:]
        return found
