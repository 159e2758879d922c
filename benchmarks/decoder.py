"""Time generation with the decoder network beside the loop of `transformers` with the same weights.

    python -m benchmarks.sampling --decoder                    a network of 60M parameters
    python -m benchmarks.sampling --decoder --quick            a smoke test of a small size
    python -m benchmarks.sampling --decoder --model FOLDER     errors of the approximate cache with weights of your own

The weights are random and shared: a Llama of transformers is saved and loaded here as a shifted diffusion model. The
loops of transformers do what the published code of LLaDA and Fast-dLLM v2 does. Along full attention, each step
computes and projects the whole canvas. In blocks, clean blocks are cached, each step computes its block, and one
more call fills the cache. Both sides write the likeliest word of highest confidence, one word a step in blocks.

The last table has the errors of the approximate cache along texts that were written without it: the divergence of the
predictions, in nats, where a word is written.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

import hdlm
from benchmarks.quality import Bench, table_of_deviations
from hdlm.checkpoint import Checkpoint
from hdlm.hyperschedule import AbstractHyperschedule, Block, flat
from hdlm.sampling import ApproximateCache, ByConfidence, Engine, Execution, Prompt

__all__ = ["Row", "deviations", "rows"]

GIVEN = 4
REFRESHES: tuple[int | None, ...] = (2, 4, 8, None)


@final
@dataclass(frozen=True)
class Sizes:
    """The sizes of a benchmark.

    Attributes:
        hidden: Width of the network.
        blocks: Number of its blocks.
        words: Rows of its vocabulary.
        length: Positions of a canvas in blocks.
        full: Positions of a canvas along full attention.
        part: Positions of a part of the full canvas.
        steps: Steps of the full canvas.
        timed: Number of calls that are timed along full attention.
    """

    hidden: int = 512
    blocks: int = 8
    words: int = 32000
    length: int = 128
    full: int = 1024
    part: int = 32
    steps: int = 256
    timed: int = 3


QUICK = Sizes(hidden=64, blocks=2, words=300, length=64, full=64, part=16, steps=16, timed=2)


@final
@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: What was timed.
        theirs: Seconds of the loop of transformers for a sequence.
        ours: Seconds here for a sequence.
    """

    name: str
    theirs: float
    ours: float

    def __str__(self) -> str:
        return f"{self.name:48} {self.theirs:9.2f} {self.ours:9.2f} {self.theirs / self.ours:7.1f}x"


@torch.no_grad()
def rows(sizes: Sizes) -> Iterator[Row]:
    """The rows of the table: blocks of 4 and 32 behind the exact cache, full attention without and with caches."""
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = _networks(sizes, Path(folder))
        ours.network.speed_up()
        for width in (4, 32):
            name = f"blocks of {width}, length {sizes.length}, exact cache"
            plan = Block(sizes.length, width, width)
            seconds = _seconds(lambda: _blocks(theirs, sizes, width))  # noqa: B023
            yield Row(name, seconds, _ours(ours, plan, ByConfidence(quota="even", greedy=True)))
        plan = flat(sizes.full, sizes.steps)
        step = ByConfidence(quota="even", greedy=True, block=sizes.part)
        canvas = torch.full((1, sizes.full), sizes.words - 1)
        canvas[:, :GIVEN] = torch.arange(GIVEN)
        _full_step(theirs, canvas, sizes)
        seconds = _seconds(lambda: [_full_step(theirs, canvas, sizes) for _ in range(sizes.timed)])
        seconds *= sizes.steps / sizes.timed
        name = f"full, length {sizes.full}, parts of {sizes.part}"
        yield Row(f"{name}, no cache", seconds, _ours(ours, plan, step, calls=sizes.timed))
        each = sizes.steps * sizes.part // sizes.full
        for refresh in (each, 4 * each, None):
            when = "never" if refresh is None else f"every {refresh} calls"
            cache = ApproximateCache(refresh, active=True)
            yield Row(f"{name}, refreshed {when}", seconds, _ours(ours, plan, step, cache))


def deviations(model: str | Path | None, sizes: Sizes, *, mask_id: int | None = None) -> str:
    """The table of the errors of the approximate cache of all positions.

    Args:
        model: A checkpoint; None for random weights.
        sizes: The sizes of the random network and of the canvas.
        mask_id: Row of the mask, where no file of the checkpoint names it.
    """
    with tempfile.TemporaryDirectory() as folder:
        loaded = _networks(sizes, Path(folder))[1] if model is None else hdlm.load(model, mask_id=mask_id)
        bench = Bench(replace(loaded, context="full"), 4, sizes.length, 0)
        return table_of_deviations(bench.deviations(sizes.length // 4, REFRESHES))


def _networks(sizes: Sizes, folder: Path) -> tuple[Any, Checkpoint]:
    """One network with random weights, as a class of transformers and as a checkpoint."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=sizes.words,
        hidden_size=sizes.hidden,
        intermediate_size=3 * sizes.hidden,
        num_hidden_layers=sizes.blocks,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=max(sizes.full, sizes.length),
        bos_token_id=0,
        eos_token_id=1,
    )
    network = LlamaForCausalLM(config).eval()
    network.save_pretrained(folder)
    return network, hdlm.load(folder, mask_id=sizes.words - 1)


def _ours(
    model: Checkpoint,
    plan: AbstractHyperschedule,
    step: ByConfidence,
    cache: ApproximateCache | None = None,
    *,
    calls: int | None = None,
) -> float:
    """Seconds for a sequence; with `calls`, so many calls are timed and stand for all of them."""
    context = "full" if plan.is_flat else "block_causal"
    regime = replace(model.regime(plan), context=context)
    prompt = Prompt.prefix(list(range(GIVEN)), plan.length)

    def run(most: int | None) -> float:
        engine = Engine(model.denoiser, regime, step, execution=Execution(approximate=cache))
        engine.add(torch.zeros(1, dtype=torch.long), tokens=prompt.tokens, fixed=prompt.fixed)
        begin = time.perf_counter()
        while len(engine) and (most is None or engine.num_evaluations < most):
            engine.advance()
        return (time.perf_counter() - begin) / engine.num_evaluations

    run(1)
    every = plan.num_steps
    return run(calls) * every if calls is not None else _seconds(lambda: run(None))


def _full_step(network: Any, x: Tensor, sizes: Sizes) -> Tensor:
    """One step of the loop of LLaDA, for a shifted network: the whole canvas is computed and projected."""
    everything = torch.ones(1, 1, x.shape[1], x.shape[1], dtype=torch.bool)
    logits = network(x, attention_mask=everything, use_cache=False).logits
    best = torch.cat([logits[:, :1], logits[:, :-1]], 1).softmax(-1).max(-1)
    trust = best.values.masked_fill(x != sizes.words - 1, -torch.inf)
    trust[:, GIVEN + sizes.part :] = -torch.inf
    number = sizes.full // sizes.steps
    return x.scatter(1, trust.topk(number, dim=1).indices, best.indices)


def _blocks(network: Any, sizes: Sizes, width: int) -> Tensor:
    """The loop of Fast-dLLM v2, one word a step: clean blocks are cached, by one more call for each block."""
    from transformers import DynamicCache

    mask, cache = sizes.words - 1, DynamicCache()
    x = torch.full((1, sizes.length), mask)
    x[:, :GIVEN] = torch.arange(GIVEN)
    before: Tensor | None = None

    def called(begin: int) -> Tensor:
        end = begin + width
        logits = network(
            x[:, begin:end],
            attention_mask=torch.ones(1, 1, width, end, dtype=torch.bool),
            position_ids=torch.arange(begin, end)[None],
            past_key_values=cache,
            use_cache=True,
        ).logits
        return torch.as_tensor(logits)

    for begin in range(0, sizes.length, width):
        block = x[:, begin : begin + width]
        while (block == mask).any():
            logits = called(begin)
            cache.crop(-width)
            first = logits[:, :1] if before is None else before
            best = torch.cat([first, logits[:, :-1]], 1).softmax(-1).max(-1)
            trust = best.values.masked_fill(block != mask, -torch.inf)
            place = trust.argmax(1, keepdim=True)
            block.scatter_(1, place, best.indices.gather(1, place).clamp_max(mask - 1))
        before = called(begin)[:, -1:]
    return x


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def report(*, quick: bool, model: str | None, mask_id: int | None) -> None:
    """Print both tables."""
    sizes = QUICK if quick else Sizes()
    if model is None:
        print(f"{'':48} {'transformers':>9} {'hdlm':>6} {'ratio':>8}   (seconds, batch 1)")
        for row in rows(sizes):
            print(row, flush=True)
    print(deviations(model, sizes, mask_id=mask_id))
