r"""How one token is noised.

A noise process is three weights of the noise fraction `u` in [0, 1],

    q(x_u | x_0) = clean(u) delta(x_0) + uniform(u) U(words) + mask(u) delta(MASK),

and one property: whether noise leaves a mask unchanged (`absorbs`, the default) or redraws it like a word (GIDD).
Forward kernels, corruption, priors, posteriors, the conversion of scores and the transition rates are derived from
these once, here. Words are `0 .. N-1` with `N = num_words`; the mask is `N`; vectors over the vocabulary have `v = N +
1` entries, the mask last. Positions are noised independently, so every method is elementwise over `*b`.
"""

from __future__ import annotations

import abc
import functools
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["AbstractNoiseProcess", "Kernel", "Rates", "Reverse", "Weights"]


@final
@dataclass(frozen=True, slots=True)
class Weights:
    """The marginal `q(x_u | x_0)`: weights of the clean token, a uniform word, the mask. They sum to 1."""

    clean: Float[Tensor, "*b"]
    uniform: Float[Tensor, "*b"]
    mask: Float[Tensor, "*b"]


@final
@dataclass(frozen=True, slots=True)
class Kernel:
    """A transition `q(x_t | x_s)`.

    A word is kept, replaced by a uniform word, or masked (`keep + uniform + mask = 1`); a mask becomes a uniform
    word with probability `release`, which is 0 if masks are absorbing.
    """

    keep: Float[Tensor, "*b"]
    uniform: Float[Tensor, "*b"]
    mask: Float[Tensor, "*b"]
    release: Float[Tensor, "*b"]


@final
@dataclass(frozen=True, slots=True)
class Rates:
    """Transition rates per unit of `u`: word to a uniform word, word to mask, mask to a uniform word."""

    uniform: Float[Tensor, "*b"]
    mask: Float[Tensor, "*b"]
    release: Float[Tensor, "*b"]


@final
@dataclass(frozen=True, slots=True)
class Reverse:
    """One step back, `p(x_s | x_t)`, as a mixture: stay, a draw from `p(x_0 | x_t)`, a uniform word, the mask."""

    stay: Float[Tensor, "*b"]
    model: Float[Tensor, "*b"]
    uniform: Float[Tensor, "*b"]
    mask: Float[Tensor, "*b"]


class AbstractNoiseProcess(abc.ABC):
    """A process is defined by its `weights`; a subclass is final and overrides nothing else.

    Attributes:
        num_words: Number `N` of words; the mask is `N`.
        absorbs: Whether the noise leaves masks unchanged. If not, it redraws masks and words alike.
        strength_field: Name of the field with the share of wrong words (0: none), if there is one.
    """

    num_words: int
    absorbs: ClassVar[bool] = True
    strength_field: ClassVar[str | None] = None

    @abc.abstractmethod
    def weights(self, u: Float[Tensor, "*b"]) -> Weights:
        """Marginal weights at noise fraction `u` in [0, 1]; `weights(0)` is (1, 0, 0)."""

    # -- everything below is derived ------------------------------------------------------------------------

    @property
    def mask_id(self) -> int:
        """Id of the mask token."""
        return self.num_words

    @property
    def makes_masks(self) -> bool:
        """Whether noise ever turns a word into the mask."""
        return bool(self.weights(torch.linspace(0, 1, 5, dtype=torch.float64)).mask.any())

    @property
    def final_mask_share(self) -> float:
        """The share of masks in pure noise."""
        return float(self.weights(torch.ones((), dtype=torch.float64)).mask)

    @property
    def ends_in_masks(self) -> bool:
        """Whether pure noise consists of masks only."""
        return self.final_mask_share == 1

    @functools.cached_property
    def only_masks(self) -> bool:
        """Whether noise never replaces a word by another and leaves masks unchanged, as in the absorbing process."""
        return self.absorbs and not bool((self.weights(torch.linspace(0, 1, 33).double()).uniform > 0).any())

    @functools.cached_property
    def words_stay(self) -> bool:
        """Whether words are unchanged while masks are replaced, as in the absorbing and the epsilon-hybrid process."""
        middle = self.rates(torch.full((), 0.5, dtype=torch.float64))
        return bool(middle.mask > 0) and not bool((middle.uniform > 0) | (middle.release > 0))

    @final
    def between(self, s: Float[Tensor, "*b"], t: Float[Tensor, "*b"]) -> Kernel:
        """The kernel `q(x_t | x_s)` for noise fractions `s <= t`."""
        at_s, at_t = self.weights(s), self.weights(t)
        keep = _ratio(at_t.clean, at_s.clean)
        if self.absorbs:
            word = _ratio(at_t.clean + at_t.uniform, at_s.clean + at_s.uniform)
            return Kernel(keep, (word - keep).clamp_min(0), 1 - word, torch.zeros_like(keep))
        uniform = (at_t.uniform - keep * at_s.uniform).clamp_min(0)
        return Kernel(keep, uniform, 1 - keep - uniform, uniform)

    @final
    def rates(self, u: Float[Tensor, "*b"]) -> Rates:
        """Infinitesimal `between(u, u + du)`, for `u` in (0, 1); weights are differentiated by autograd."""
        with torch.inference_mode(False), torch.enable_grad():
            x = u.detach().clone().requires_grad_()
            w = self.weights(x)
            parts = (w.clean + 0 * x, w.uniform + 0 * x)  # a constant part has the derivative 0
            slopes = [torch.autograd.grad(part.sum(), x, retain_graph=True)[0] for part in parts]
        (clean, uniform), (d_clean, d_uniform) = (part.detach() for part in parts), slopes
        leave = -d_clean / clean
        if self.absorbs:
            mask = -(d_clean + d_uniform) / (clean + uniform)
            return Rates((leave - mask).clamp_min(0), mask, torch.zeros_like(mask))
        arrive = (d_uniform + leave * uniform).clamp_min(0)
        return Rates(arrive, leave - arrive, arrive)

    @final
    def spread(self, p: Float[Tensor, "*b v"], kernel: Kernel) -> Float[Tensor, "*b v"]:
        """Push a (not necessarily normalised) distribution over the vocabulary through a kernel."""
        words, mask = p[..., :-1], p[..., -1]
        mass = words.sum(-1)
        anywhere = (kernel.uniform * mass + kernel.release * mask) / self.num_words
        new_mask = kernel.mask * mass + (1 - kernel.release) * mask
        return torch.cat([kernel.keep[..., None] * words + anywhere[..., None], new_mask[..., None]], -1)

    @final
    def unspread(self, p: Float[Tensor, "*b v"], kernel: Kernel) -> Float[Tensor, "*b v"]:
        """The inverse of `spread`: `exp(-dQ) p`, exactly. Needs `keep > 0`."""
        words, mask = p[..., :-1], p[..., -1]
        mass = words.sum(-1)
        determinant = 1 - kernel.mask - kernel.release
        old_mass = ((1 - kernel.release) * mass - kernel.release * mask) / determinant
        old_mask = ((1 - kernel.mask) * mask - kernel.mask * mass) / determinant
        anywhere = (kernel.uniform * old_mass + kernel.release * old_mask) / self.num_words
        return torch.cat([(words - anywhere[..., None]) / kernel.keep[..., None], old_mask[..., None]], -1)

    @final
    def likelihood(self, x: Int[Tensor, "*b"], kernel: Kernel) -> Float[Tensor, "*b v"]:
        """`q(x | y)` for every origin `y` of the vocabulary."""
        masked = x == self.mask_id
        from_word = torch.where(masked, kernel.mask, kernel.uniform / self.num_words)
        from_mask = torch.where(masked, 1 - kernel.release, kernel.release / self.num_words)
        out = from_word[..., None].repeat(*(1 for _ in x.shape), self.num_words + 1)
        out[..., -1] = from_mask
        kept = torch.where(masked, 0.0, kernel.keep)
        return out.scatter_add(-1, x[..., None], kept[..., None])

    @final
    def corrupt(
        self, x_0: Int[Tensor, "*b"], u: Float[Tensor, "*b"], draw: Float[Tensor, "*b"]
    ) -> Int[Tensor, "*b"]:
        """Draw `x_u ~ q(x_u | x_0)`.

        Args:
            x_0: Ids of clean words.
            u: Noise fraction of each position.
            draw: One uniform number in [0, 1) per position, preferably float64; the result is a function of it.
        """
        w = self.weights(u)
        share = ((draw - w.clean) / w.uniform.clamp_min(torch.finfo(draw.dtype).tiny)).clamp(0, 1)
        anything = (share * self.num_words).long().clamp_max(self.num_words - 1)
        x = torch.where(draw < w.clean, x_0, anything)
        return torch.where(draw >= w.clean + w.uniform, self.mask_id, x)

    @final
    def prior(self, u: Float[Tensor, "*b"]) -> Weights:
        """The distribution at the start of generation: the limit of the process, with the masks of noise `u`.

        If `words_stay`, that limit consists of masks only, at every `u`: a word at the start would never be replaced.
        Otherwise noise replaces words, and the remaining weight of the data at `u` is given to the uniform part.
        """
        w = self.weights(u)
        word = torch.zeros_like(w.clean) if self.words_stay else w.clean + w.uniform
        return Weights(torch.zeros_like(w.clean), word, 1 - word)

    @final
    def draw_prior(self, u: Float[Tensor, "*b"], draw: Float[Tensor, "*b"]) -> Int[Tensor, "*b"]:
        """Draw from `prior(u)` with one uniform number in [0, 1) per position."""
        w = self.prior(u)
        share = (draw / w.uniform.clamp_min(torch.finfo(draw.dtype).tiny)).clamp(0, 1)
        word = (share * self.num_words).long().clamp_max(self.num_words - 1)
        return torch.where(draw < w.uniform, word, self.mask_id)

    @final
    def origin(
        self, x_t: Int[Tensor, "*b"], clean: Float[Tensor, "*b v"], t: Float[Tensor, "*b"]
    ) -> Float[Tensor, "*b v"]:
        """`p(x_0 | x_t) / q(x_t | x_0)` for every `x_0`, zero where `x_t` is impossible, with `sum(origin * q) = 1`.

        Up to a constant it is the distribution of `x_0` given everything except the token at its own position.
        """
        q = self.likelihood(x_t, self.between(torch.zeros_like(t), t))
        origin = _ratio(clean, q)
        return origin / (origin * q).sum(-1, keepdim=True)

    @final
    def posterior(
        self,
        x_t: Int[Tensor, "*b"],
        clean: Float[Tensor, "*b v"],
        s: Float[Tensor, "*b"],
        t: Float[Tensor, "*b"],
    ) -> Float[Tensor, "*b v"]:
        """`p(x_s | x_t) = sum_{x_0} q(x_s | x_t, x_0) p(x_0 | x_t)` over the whole vocabulary, exactly.

        Args:
            x_t: Ids of noisy tokens.
            clean: `p(x_0 | x_t)`, zero at the mask.
            s: Noise fraction to step to, `s <= t`.
            t: Noise fraction of `x_t`.
        """
        back = self.spread(self.origin(x_t, clean, t), self.between(torch.zeros_like(s), s))
        p = self.likelihood(x_t, self.between(s, t)) * back
        return p / p.sum(-1, keepdim=True)

    @final
    def reverse(
        self,
        x_t: Int[Tensor, "*b"],
        own: Float[Tensor, "*b"],
        s: Float[Tensor, "*b"],
        t: Float[Tensor, "*b"],
    ) -> Reverse:
        """`posterior` in closed form, as a mixture that needs no tensor over the vocabulary.

        Args:
            x_t: Ids of noisy tokens.
            own: `p(x_0 = x_t | x_t)`, the model's probability of the current token; ignored at masks.
            s: Noise fraction to step to, `s <= t`.
            t: Noise fraction of `x_t`.
        """
        at_s, at_t, step = self.weights(s), self.weights(t), self.between(s, t)
        n = self.num_words
        # A mask: stays, or becomes a word of the marginal at s.
        unmask = _ratio(step.mask, at_t.mask)
        zero = torch.zeros_like(unmask)
        masked = Reverse(
            1 - unmask * (at_s.clean + at_s.uniform), unmask * at_s.clean, unmask * at_s.uniform, zero
        )
        # A word: `total` is the sum over x_0 of p(x_0 | x_t) / q(x_t | x_0).
        seen = at_t.uniform / n + at_t.clean
        total = n * _ratio(1 - own, at_t.uniform) + _ratio(own, seen)
        model = _ratio(step.uniform * at_s.clean, at_t.uniform)
        uniform = step.uniform * at_s.uniform * total / n
        mask = step.release * at_s.mask * total / n
        stay = _ratio(own * at_s.clean, seen) * (step.keep - _ratio(step.uniform * at_t.clean, at_t.uniform))
        stay = stay.clamp_min(0) + step.keep * at_s.uniform * total / n
        certain = at_t.uniform <= 0  # then x_t is x_0
        stay = torch.where(certain, 1.0, stay)
        norm = stay + torch.where(certain, 0.0, model + uniform + mask)
        moves = [torch.where(certain, 0.0, part) / norm for part in (model, uniform, mask)]
        is_mask = x_t == self.mask_id
        parts = zip(
            (stay / norm, *moves), (masked.stay, masked.model, masked.uniform, masked.mask), strict=True
        )
        return Reverse(*(torch.where(is_mask, of_mask, of_word) for of_word, of_mask in parts))

    @final
    def score_from_clean(
        self, x_t: Int[Tensor, "*b"], clean: Float[Tensor, "*b v"], u: Float[Tensor, "*b"]
    ) -> Float[Tensor, "*b v"]:
        """The concrete score `p_u(y) / p_u(x_t)` for every `y` (1 at `x_t`) that `p(x_0 | x_t)` implies."""
        return self.spread(self.origin(x_t, clean, u), self.between(torch.zeros_like(u), u))

    @final
    def clean_from_score(
        self, x_t: Int[Tensor, "*b"], score: Float[Tensor, "*b v"], u: Float[Tensor, "*b"]
    ) -> Float[Tensor, "*b v"]:
        """Compute `p(x_0 | x_t)` from a score: undo the forward kernel on the words, then Bayes. Needs `u < 1`.

        The mask entry of the score is not used. A score that no distribution has gives negative probabilities,
        which are set to zero.
        """
        kernel = self.between(torch.zeros_like(u), u)
        words = score[..., :-1]
        mass = words.sum(-1) / (kernel.keep + kernel.uniform)
        origin = (words - (kernel.uniform * mass / self.num_words)[..., None]).clamp_min(0)
        p = torch.nn.functional.pad(origin, (0, 1)) * self.likelihood(x_t, kernel)
        return p / p.sum(-1, keepdim=True)

    @final
    def tweedie(
        self,
        x_t: Int[Tensor, "*b"],
        score: Float[Tensor, "*b v"],
        s: Float[Tensor, "*b"],
        t: Float[Tensor, "*b"],
    ) -> Float[Tensor, "*b v"]:
        """Analytic step of SEDD (arXiv 2310.16834, theorem 4.2): `(exp(-dQ) score)(y) exp(dQ)[x_t, y]`, exactly.

        Data contain no masks. So a step to `s = 0` replaces the mask entry of the score by the one that follows from
        the words, which is equal for a true score; the inverse then has a positive word for every positive score.
        """
        kernel = self.between(s, t)
        of_data = _ratio(kernel.mask, 1 - kernel.mask) * score[..., :-1].sum(-1)
        mask = torch.where(s == 0, of_data, score[..., -1])
        score = torch.cat([score[..., :-1], mask[..., None]], -1)
        p = self.unspread(score, kernel).clamp_min(0) * self.likelihood(x_t, kernel)
        return p / p.sum(-1, keepdim=True)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """`a / b`, and 0 where `b` is 0."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), 0.0)
