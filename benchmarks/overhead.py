"""What the sampler costs beside the network: `python -m benchmarks.sampling --overhead`.

The shipped model writes 64 tokens in blocks of 16 on one thread, and a stub of the same shape does: it returns numbers
without computing them, so what is left is the sampler. Operations are those that a dispatch mode counts outside of the
network; views of memory, which compute nothing, are not among them. Seconds are those of the processor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hdlm.checkpoint import load_checkpoint
from hdlm.denoiser import Denoiser
from hdlm.hyperschedule import Block
from hdlm.package_data import pretrained
from hdlm.regime import Regime
from hdlm.sampling import Generation, Prompt, algorithm, sample

__all__ = ["Operations", "main", "outside"]

LENGTH, WIDTH, RUNS = 64, 16, 3
FREE = ("view", "promote_types", "detach", "alias")


@final
class Operations(TorchDispatchMode):
    """Counts tensor operations; views are not counted, and nothing is while it is `paused`."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.paused = 0, False

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: dict[str, Any] | None = None
    ) -> Any:
        free = self.paused or function.is_view or any(name in str(function) for name in FREE)
        self.count += not free
        return function(*arguments, **(options or {}))


def outside(denoiser: Denoiser, write: Callable[[], Generation]) -> float:
    """Operations for a call of the network, outside of the network."""
    backbone, operations = denoiser.backbone, Operations()
    names = ("features", "features_of_many", "head")

    def uncounted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            before, operations.paused = operations.paused, True
            try:
                return function(*arguments, **options)
            finally:
                operations.paused = before

        return call

    for name in names:
        setattr(backbone, name, uncounted(getattr(backbone, name)))
    try:
        with operations:
            done = write()
    finally:
        for name in names:
            delattr(backbone, name)
    return operations.count / done.num_evaluations


@final
class _NoCache:
    def retain(self, places: Tensor) -> None:
        """Nothing is kept."""


@final
class _Stub(torch.nn.Module):
    """Hidden vectors and logits of the shapes of a network, at no cost."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        matrix, _ = network.projection()
        self.weight = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self._hidden, self._logits = torch.zeros(1, 1, matrix.shape[1]), torch.zeros(1, matrix.shape[0])

    def features(self, tokens: Tensor, **rest: Any) -> Tensor:
        return self._hidden.expand(*tokens.shape, -1)

    def features_of_many(self, passes: Any) -> list[Tensor]:
        return [self.features(one.tokens) for one in passes]

    def head(self, hidden: Tensor) -> Tensor:
        return self._logits.expand(len(hidden), -1)

    def projection(self) -> tuple[Tensor, Tensor | None]:
        return self._logits.T, None

    def new_cache(self) -> _NoCache:
        return _NoCache()


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(pretrained() / "kjv-epsilon-4m")
    real = checkpoint.denoiser.eval()
    stub = Denoiser(_Stub(real.backbone), real.process, real.parameterization)
    print("| algorithm | evaluations | s | s with a stub | share of the sampler | operations an evaluation |")
    print("|---" * 6 + "|")
    for name in ("original", "acs", "remdm", "threshold"):
        step = algorithm(name, real.process, 0.01)

        plan, prompt = Block(LENGTH, WIDTH, WIDTH), Prompt.prefix([0], LENGTH)
        write, free = (
            partial(sample, denoiser, Regime(plan, context=checkpoint.context), step, prompt=prompt)
            for denoiser in (real, stub)
        )
        calls, operations = write().num_evaluations, outside(real, write)
        whole, alone = (min(_seconds(run) for _ in range(RUNS)) for run in (write, free))
        print(
            f"| {name} | {calls} | {whole:.3f} | {alone:.3f} | {alone / whole:.2f} | {operations:.0f} |",
            flush=True,
        )


def _seconds(write: Callable[[], Generation]) -> float:
    """Processor time of a run."""
    begin = time.process_time()
    write()
    return time.process_time() - begin
