"""Generative perplexity: how likely another language model finds generated text.

    token-weighted   exp( sum of nats over all samples / sum of judged tokens )
    over samples     mean of exp( nats / judged tokens ) of each sample

The judge reads text with its own tokenizer. A token is judged when another token stands before it: the judge's
begin-of-sequence token if there is one; otherwise the first token of a sample is given and not judged. Longer texts are
read in windows that overlap by half or more; each token is judged once, in the first window that contains it.

A repetitive text gets a good score, so the number has no meaning without the entropy of the samples (arXiv 2409.02908).
Numbers of different judges cannot be compared.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hdlm.checkpoint import Checkpoint
from hdlm.data.tokenizer import Tokenizer
from hdlm.denoiser import resolve_device
from hdlm.evaluation.generation.metrics import Estimate, jackknife, mean
from hdlm.evaluation.likelihood.bounds import AbsorbingBound
from hdlm.evaluation.records.protocol import weights_sha256
from hdlm.hub_access import cached_file, files_on_hub
from hdlm.hyperschedule import autoregressive
from hdlm.package_data import is_path

__all__ = ["AbstractJudge", "CheckpointJudge", "Judgement", "TransformersJudge", "generative_perplexity"]

_T = TypeVar("_T")


@final
@dataclass(frozen=True)
class Judgement:
    """A judge's result for one text.

    Attributes:
        nats: `-log p` of its judged tokens.
        num_tokens: Number of judged tokens.
    """

    nats: float
    num_tokens: int


class AbstractJudge(abc.ABC):
    """A language model that gives text a probability.

    Attributes:
        name: Name of the judge in a report.
        sha256: Hash of the weights; numbers of different judges must not be compared.
    """

    name: str
    sha256: str

    @property
    def protocol_fields(self) -> dict[str, str]:
        """Fields of the document beside every number of this judge."""
        return {"judge": self.name, "judge_sha256": self.sha256}

    @abc.abstractmethod
    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """Judge each text."""


@final
class TransformersJudge(AbstractJudge):
    """A causal language model in the format of `transformers`.

    Args:
        source: Folder, or name on the hub.
        device: Device of the model.
        batch_size: Texts per forward pass.
        offline: Whether access to the hub is forbidden.

    Raises:
        ValueError: If the model cannot be found or downloaded, if some of its weights are missing, or if it is not
            causal.
    """

    def __init__(
        self,
        source: str,
        device: torch.device | str = "cpu",
        batch_size: int = 8,
        *,
        offline: bool = False,
    ) -> None:
        self.name, self._device, self._batch_size = source, torch.device(device), batch_size
        self._tokenizer, model = _opened(source, offline=offline)
        self._model = model.to(self._device).eval()
        if _looks_ahead(self._model, self._device):
            raise ValueError(
                f"the judge {source!r} attends to later tokens, so it does not give the likelihood of a text. "
                f"Give a causal "
                "language model."
            )
        self.sha256 = weights_sha256(model)

    @torch.no_grad()
    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        return _judged(self._rows(texts), self._limit, self._batch_size, self._pass)

    @torch.no_grad()
    def features(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """The last hidden state of the last token of each text: the features for MAUVE.

        Only the beginning is used of a text that is longer than the model's context.

        Raises:
            ValueError: If there is no text, or one has no token.
        """
        rows = [row[: self._limit] for row in self._rows(texts)]
        if not rows or not all(rows):
            raise ValueError(f"{self.name} needs at least one text, and no text may be empty.")
        features: list[Tensor] = []
        for some in _chunks(rows, self._batch_size):
            last = torch.tensor([len(row) - 1 for row in some])
            hidden = self._model(input_ids=self._padded(some), output_hidden_states=True).hidden_states[-1]
            features.append(hidden[torch.arange(len(some)), last].float().cpu())
        return torch.cat(features)

    @property
    def _limit(self) -> int | None:
        """Maximum number of tokens that the model can read."""
        limit: int | None = getattr(self._model.config, "max_position_embeddings", None)
        return limit

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of the texts."""
        begin = self._tokenizer.bos_token_id
        rows = [self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
        return [row if begin is None else [begin, *row] for row in rows]

    def _padded(self, rows: list[list[int]]) -> Tensor:
        """One batch with padding at the end, which causal attention does not see."""
        tokens = torch.zeros(len(rows), max(2, *map(len, rows)), dtype=torch.long)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        return tokens.to(self._device)

    def _pass(self, windows: list[_Window]) -> list[float]:
        tokens = self._padded([window.tokens for window in windows])
        place = torch.arange(1, tokens.shape[1])
        judged = torch.stack([(place >= w.given) & (place < len(w.tokens)) for w in windows])
        logits = self._model(input_ids=tokens).logits[:, :-1].float()
        nats = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        summed: list[float] = (
            nats.view(judged.shape).double().masked_fill(~judged.to(nats.device), 0.0).sum(1).tolist()
        )
        return summed


@final
class CheckpointJudge(AbstractJudge):
    """A checkpoint as a judge: its exact likelihood as an autoregressive model.

    Args:
        checkpoint: The model; its noise must be able to mask everything.
        tokenizer: The tokenizer of the model.
        name: Name of the judge in a report.
        device: The device of the model, which is the default; another device is refused.
        batch_size: Texts per forward pass.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        name: str,
        device: torch.device | str | None = None,
        batch_size: int = 8,
    ) -> None:
        self.name, self._checkpoint, self._tokenizer = name, checkpoint, tokenizer
        self._device, self._batch_size = resolve_device(checkpoint.denoiser, device), batch_size
        self.sha256 = weights_sha256(checkpoint.network)

    @torch.no_grad()
    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        begin = self._tokenizer.vocabulary.bos
        rows = [self._tokenizer.encode(text) if text else [] for text in texts]
        rows = [row if begin is None else [begin, *row] for row in rows]
        return _judged(rows, self._checkpoint.length, self._batch_size, self._pass)

    def _pass(self, windows: list[_Window]) -> list[float]:
        nats_of = [0.0] * len(windows)
        for length, given in sorted({(len(window.tokens), window.given) for window in windows}):
            alike = [
                at
                for at, window in enumerate(windows)
                if (len(window.tokens), window.given) == (length, given)
            ]
            for at, nats in zip(alike, self._nats([windows[at].tokens for at in alike], given), strict=True):
                nats_of[at] = nats
        return nats_of

    def _nats(self, rows: list[list[int]], given: int) -> list[float]:
        """Nats of rows of equal length, without their given first tokens."""
        model, tokens = self._checkpoint, torch.tensor(rows, device=self._device)
        bound = AbsorbingBound(model.denoiser, model.regime(autoregressive(tokens.shape[1])), "exact", given)
        times = torch.zeros(len(tokens), bound.corruption.num_times, dtype=torch.float64)
        draw = torch.zeros(tokens.shape, dtype=torch.float64)
        nats: list[float] = bound(tokens, times.to(self._device), draw.to(self._device)).tolist()
        return nats


@final
@dataclass(frozen=True)
class _Window:
    """Part of a text, as long as a judge can read, and the number of given tokens at its beginning."""

    text: int
    tokens: list[int]
    given: int


def _judged(
    rows: list[list[int]], limit: int | None, size: int, nats: Callable[[list[_Window]], list[float]]
) -> list[Judgement]:
    """Judge rows of tokens, a batch of windows at a time."""
    totals = [0.0] * len(rows)
    windows = [window for text, row in enumerate(rows) for window in _windows(text, row, limit or len(row))]
    for some in _chunks(windows, size):
        for window, nats_of_window in zip(some, nats(some), strict=True):
            totals[window.text] += nats_of_window
    return [Judgement(total, max(0, len(row) - 1)) for total, row in zip(totals, rows, strict=True)]


def _windows(text: int, row: list[int], limit: int) -> Iterator[_Window]:
    """Windows of a text; every token but the first is new in exactly one of them."""
    end = min(limit, len(row))
    if end > 1:
        yield _Window(text, row[:end], 1)
    while end < len(row):
        new = min(limit - limit // 2, len(row) - end)
        end += new
        yield _Window(text, row[end - limit : end], limit - new)


def _chunks(items: list[_T], size: int) -> list[list[_T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def generative_perplexity(
    judge: AbstractJudge, texts: Sequence[str], watch: Callable[[int], None] | None = None
) -> dict[str, Estimate]:
    """Both perplexities of some texts, with jackknife errors over texts.

    Args:
        judge: The judge of the texts.
        texts: Texts of the samples.
        watch: Called with the number of texts that have been judged.

    Raises:
        ValueError: If there is no text, or a text has no token to judge.
    """
    if not texts:
        raise ValueError("there are no samples to judge; give at least one.")
    judgements: list[Judgement] = []
    for start in range(0, len(texts), _CHUNK):
        judgements += judge.judge(texts[start : start + _CHUNK])
        if watch is not None:
            watch(len(judgements))
    empty = [index for index, judgement in enumerate(judgements) if not judgement.num_tokens]
    if empty:
        raise ValueError(f"sample {empty[0]} has no token that {judge.name} can judge: it is too short.")
    nats = math.fsum(judgement.nats for judgement in judgements)
    count = sum(judgement.num_tokens for judgement in judgements)
    without = [
        math.exp((nats - judgement.nats) / (count - judgement.num_tokens)) if len(judgements) > 1 else 0.0
        for judgement in judgements
    ]
    return {
        "generative perplexity": jackknife(math.exp(nats / count), without),
        "generative perplexity, mean over samples": mean(
            [math.exp(judgement.nats / judgement.num_tokens) for judgement in judgements]
        ),
    }


def _opened(source: str, *, offline: bool) -> tuple[Any, Any]:
    """The tokenizer and the model of a folder or a name.

    Raises:
        ValueError: If the model cannot be opened, or weights are missing: they would be random.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if is_path(source) and not Path(source).exists():
        raise ValueError(
            f"the judge {source!r} cannot be loaded: there is no such file or folder. Give the folder of a causal "
            "language model, a checkpoint of hdlm, or a name of the hub, such as gpt2."
        )
    try:
        here = _is_here(source, offline=offline)
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=here)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, local_files_only=here, output_loading_info=True
        )
    except OSError as error:
        raise ValueError(
            f"the judge {source!r} cannot be loaded: it is not a local folder, it is not in the hub's cache, and "
            f"{'the hub is not asked (--offline)' if offline else 'it was not found on the hub'}. Give the folder of a "
            "causal language model on this machine."
        ) from error
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"the weights of the judge {source!r} are damaged, or those of another model ({error}). Fetch them again."
        ) from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"the judge {source!r} lacks {len(missing)} of its weights, {missing[0]} among them: it is incomplete, or "
            "it is not a language model."
        )
    return tokenizer, model


@torch.no_grad()
def _looks_ahead(model: Any, device: torch.device) -> bool:
    """Whether the outputs at the first tokens depend on a later token."""
    tokens = torch.tensor([[0, 0, 0], [0, 0, 1]], device=device)
    logits, other = model(input_ids=tokens).logits[:, :2].float()
    return bool((logits - other).abs().max() > _NOISE * logits.std())


def _is_here(source: str, *, offline: bool) -> bool:
    """Whether all files are available locally; if some are missing, check at once that the hub answers.

    Raises:
        OSError: If the hub does not answer.
    """
    if Path(source).is_dir() or cached_file(source, "config.json"):
        return True
    files_on_hub(source, offline=offline)
    return False


_NOISE = 1e-2
"""Difference that rounding may cause between equal numbers, in standard deviations."""
_CHUNK = 32
"""Samples between two reports of progress."""
