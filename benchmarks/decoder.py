"""Time generation with the decoder network beside the loop of `transformers` with the same weights.

    python -m benchmarks.sampling --decoder                    a network of 60M parameters
    python -m benchmarks.sampling --decoder --quick            a smoke test of a small size
    python -m benchmarks.sampling --decoder --model FOLDER     the last two tables with weights of your own

The weights are random and shared: a Llama of transformers is saved and loaded here as a shifted diffusion model. The
loops of transformers do what the published code of LLaDA and Fast-dLLM v2 does. Along full attention, each step
computes and projects the whole canvas. In blocks, clean blocks are cached, each step computes its block, and one
more call fills the cache. Both sides write the likeliest word of highest confidence, one word a step in blocks.

The second table has speculative sampling beside plain autoregressive sampling with the exact cache, with equal weights
and one sequence at a time. How many drafts are accepted depends on the training, so random weights would show nothing.
Without `--model`, a small Llama is trained to predict the next token of the King James Bible and then converted with
the objective and the blocks of `recipes/idlm.toml`; both trainings are short.

The last table has the errors of the approximate cache along texts that were written without it: the divergence of the
predictions, in nats, where a word is written.
"""

from __future__ import annotations

import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

import hdlm
from benchmarks.quality import Bench, table_of_deviations
from hdlm.checkpoint import Checkpoint
from hdlm.data import corpus, train_tokenizer
from hdlm.generation import Settings
from hdlm.hyperschedule import AbstractHyperschedule, Block, autoregressive, flat
from hdlm.package_data import recipes
from hdlm.sampling import (
    Ancestral,
    ApproximateCache,
    ByConfidence,
    Engine,
    Execution,
    Generation,
    Prompt,
    Temperature,
    sample,
)

__all__ = ["Row", "converted", "deviations", "rows", "speculation"]

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
        trained: Steps of each training of the model that speculates.
        sequences: Number of sequences that it writes.
    """

    hidden: int = 512
    blocks: int = 8
    words: int = 32000
    length: int = 128
    full: int = 1024
    part: int = 32
    steps: int = 256
    timed: int = 3
    trained: int = 500
    sequences: int = 8


QUICK = Sizes(64, 2, 300, length=64, full=64, part=16, steps=16, timed=2, trained=2, sequences=2)


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


def converted(sizes: Sizes, folder: Path) -> Checkpoint:
    """A small model of half the width that predicts the next token and drafts blocks of 3, after short trainings."""
    text, context = "kjv", 64
    tokenizer = train_tokenizer(corpus(text).documents(), max(300, sizes.hidden * 2))
    words = tokenizer.vocabulary
    small = replace(sizes, hidden=sizes.hidden // 2, blocks=sizes.blocks // 2, words=words.num_words)
    _llama(small, bos=words.bos, eos=words.eos).save_pretrained(folder / "random")
    (folder / "random" / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    rates = {"matrix_rate": 1e-3, "embedding_rate": 1e-3, "head_rate": 1e-3}
    options: dict[str, Any] = {
        "data": {"context": context},
        "optimizer": {"name": "adamw", "schedule": "cosine", "warmup": 0.05, **rates},
        "run": {"batch_size": 16, "precision": "no"},
    }
    run: dict[str, Any] = {"steps": sizes.trained, "seed": 0, "device": "cpu", "progress": False}
    causal = hdlm.finetune(folder / "random", text, output=folder / "causal", recipe=options, **run)
    idlm = tomllib.loads((recipes() / "idlm.toml").read_text(encoding="utf-8"))
    options |= {name: idlm[name] for name in ("network", "objective", "mixture")}
    return hdlm.finetune(causal, text, output=folder / "idlm", recipe=options, to="diffusion", **run)


@torch.no_grad()
def speculation(model: Checkpoint, sizes: Sizes) -> Iterator[str]:
    """The lines of the table of speculative sampling.

    Raises:
        ValueError: If the model cannot speculate.
    """
    plan = autoregressive(min(sizes.length, model.length))
    speculative: Any = Settings("speculative").step(model, plan)
    model.denoiser.eval()
    regime = model.regime(plan)
    first = 0 if model.vocabulary.bos is None else model.vocabulary.bos
    for temperature in (1.0, 0.0):

        def written(step: Any) -> Generation:
            return sample(
                model.denoiser,
                regime,
                step,
                num_sequences=sizes.sequences,
                prompt=Prompt.prefix([first], plan.length),
                transforms=(Temperature(temperature),),  # noqa: B023
                execution=Execution(batch_size=1),
            )

        calls = written(speculative).evaluations.sum()  # also warms up
        pace = float(sizes.sequences * (plan.length - 1) / calls)
        plain, fast = (
            min(_seconds(lambda: written(step)) for _ in range(2)) / sizes.sequences  # noqa: B023
            for step in (Ancestral(), speculative)
        )
        name = f"width {speculative.width}, length {plan.length}, temperature {temperature:g}"
        yield f"{name:48} {plain:9.2f} {fast:11.2f} {plain / fast:7.2f}x {pace:20.2f}"


def _llama(sizes: Sizes, *, bos: int | None = 0, eos: int | None = 1) -> Any:
    """A network of transformers with random weights."""
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
        bos_token_id=bos,
        eos_token_id=eos,
    )
    return LlamaForCausalLM(config).eval()


def _networks(sizes: Sizes, folder: Path) -> tuple[Any, Checkpoint]:
    """One network with random weights, as a class of transformers and as a checkpoint."""
    network = _llama(sizes)
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
    """Print the tables."""
    sizes = QUICK if quick else Sizes()
    if model is None:
        print(f"{'':48} {'transformers':>9} {'hdlm':>6} {'ratio':>8}   (seconds, batch 1)")
        for row in rows(sizes):
            print(row, flush=True)
    print(f"\n{'':43} {'autoregressive':>14} {'speculative':>11} {'ratio':>8}   tokens per forward")
    with tempfile.TemporaryDirectory() as folder:
        try:
            able = converted(sizes, Path(folder)) if model is None else hdlm.load(model, mask_id=mask_id)
            for line in speculation(able, sizes):
                print(line, flush=True)
        except ValueError as error:
            print(f"not measured: {error}")
    print(deviations(model, sizes, mask_id=mask_id))
