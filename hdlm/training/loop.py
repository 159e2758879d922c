"""The training loop: one optimizer step is one batch, noised, weighed and descended.

    step n: part of the mixture -> windows -> times and draws -> canvas -> objective -> gradient -> weights, average

Everything random in step `n` is a function of (seed, n), for the global batch, and each process and each pass of an
accumulated step takes its own rows of it. The engine is `accelerate`; watchers look at each step and change nothing.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn

from hdlm.data import AbstractWindows
from hdlm.denoiser import Denoiser
from hdlm.network import DDiT
from hdlm.objective import stratified_times
from hdlm.randomness import Randomness
from hdlm.training.ema import ExponentialMovingAverage
from hdlm.training.interrupt import StopRequest
from hdlm.training.mixture import Mixture
from hdlm.training.optimizers import make_optimizers, set_rates
from hdlm.training.parts import AbstractPart
from hdlm.training.precision import choose_precision
from hdlm.training.recipe import OptimizerSettings, RunSettings

__all__ = ["StepReport", "Trainer", "Watcher"]

_CORRUPTION = 0x91
"""Random stream of this module."""


@final
@dataclass(frozen=True)
class StepReport:
    """What happened in one optimizer step.

    Attributes:
        step: Its number, from 1.
        loss: Mean loss of a position of the global batch, in nats.
        gradient_norm: Norm of the gradient before it was clipped.
        rate: Learning rate relative to its peak.
        tokens: Tokens that all steps so far have trained on.
        seconds: Time since the run began.
        progress: Share of the run that is done, in [0, 1].
    """

    step: int
    loss: float
    gradient_norm: float
    rate: float
    tokens: int
    seconds: float
    progress: float


Watcher: TypeAlias = Callable[[StepReport], None]
"""Looks at each step: a progress bar, a log, a checkpoint every few minutes."""


@final
class _Loss(nn.Module):
    """Clean batch in, mean loss out: the one module that `accelerate` wraps, so that gradients are averaged."""

    def __init__(self, denoiser: Denoiser, precision: str) -> None:
        super().__init__()
        self.denoiser = denoiser
        self._bf16 = precision == "bf16"

    def forward(
        self,
        part: AbstractPart,
        x_0: Int[Tensor, "b l"],
        times: Float[Tensor, "b e"],
        draw: Float[Tensor, "b l"],
    ) -> Float[Tensor, ""]:
        """Mean over all positions that teach."""
        with torch.autocast(x_0.device.type, torch.bfloat16, enabled=self._bf16):
            return part.loss(self.denoiser, x_0, times, draw).mean()


@final
class Trainer:
    """Trains the network of a denoiser.

    Args:
        denoiser: What to train; its weights change in place.
        mixture: What to learn from at which step.
        windows: The text.
        optimizer: How weights move.
        run: How long, how much at a time, and how.
        device: Where.

    Attributes:
        average: Moving average of the weights.
        precision: `"bf16"` or `"no"`: what the network computes in.
        step: Optimizer steps done.
        sequences: Windows of text that they took.
        seconds: Time spent on them.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        mixture: Mixture,
        windows: AbstractWindows,
        optimizer: OptimizerSettings,
        run: RunSettings,
        device: torch.device,
    ) -> None:
        self._mixture, self._windows, self._settings, self._run = mixture, windows, optimizer, run
        self._randomness = Randomness(run.seed)
        self._accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
        self.precision = choose_precision(run.precision, device)
        self._network: DDiT = denoiser.backbone.to(self._accelerator.device)
        self.average = ExponentialMovingAverage(self._network, optimizer.ema)
        self.step, self.sequences, self.seconds = 0, 0, 0.0
        optimizers = make_optimizers(self._network, optimizer)
        if run.compile and _has_compiler(device):
            self._network.features = torch.compile(self._network.features)
        self._loss = self._accelerator.prepare(_Loss(denoiser, self.precision))
        self._optimizers = [self._accelerator.prepare(one) for one in optimizers]

    def train(self, stop: StopRequest, watchers: Sequence[Watcher] = ()) -> StepReport | None:
        """Run until the end, or until somebody asks to stop.

        Args:
            stop: Turns true when somebody asks.
            watchers: Called after each step.

        Returns:
            The report of the last step; None if there was none.

        Raises:
            ValueError: If the loss is not finite any more.
        """
        self._loss.train()
        began = time.perf_counter() - self.seconds
        report = None
        while not self._is_over(stop):
            progress = self._run.progress(self.step, self.seconds)
            part = self._mixture.at(self.step, progress)
            rate = self._settings.rate(progress)
            loss, norm = self._descend(part, rate)
            self.step += 1
            self.seconds = time.perf_counter() - began
            self.sequences += part.batch_size
            report = StepReport(
                step=self.step,
                loss=loss,
                gradient_norm=norm,
                rate=rate,
                tokens=self.sequences * self._windows.length,
                seconds=self.seconds,
                progress=self._run.progress(self.step, self.seconds),
            )
            for watcher in watchers:
                watcher(report)
        self._loss.eval()
        return report

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Give the denoiser its averaged weights, in evaluation mode, for the length of a block."""
        training = self._loss.training
        self._loss.eval()
        try:
            with self.average.lent():
                yield
        finally:
            self._loss.train(training)

    def published_state(self) -> dict[str, Any]:
        """Everything that a `checkpoint_STEP.pth` of the published trainer holds, ready for `torch.save`."""
        average = self.average.state_dict()
        return {
            "optimizer": [optimizer.state_dict() for optimizer in self._optimizers],
            "model": {name: value.detach().cpu() for name, value in self._network.state_dict().items()},
            "ema": {
                "decay": self.average.decay,
                "optimization_step": self.average.ticks,
                "shadow_params": [average[name].cpu() for name, _ in self._network.named_parameters()],
            },
            "step": self.step,
        }

    def close(self) -> None:
        """Wait for all processes, and part from them."""
        self._accelerator.wait_for_everyone()
        self._accelerator.end_training()

    def _is_over(self, stop: StopRequest) -> bool:
        """Whether the run has ended, or somebody asked any of the processes to stop: all agree."""
        over = bool(stop) or self._run.progress(self.step, self.seconds) >= 1
        if self._accelerator.num_processes == 1:
            return over
        votes = torch.tensor(float(over), device=self._accelerator.device)
        everybody: Tensor = self._accelerator.reduce(votes, "sum")
        return bool(everybody > 0)

    def _descend(self, part: AbstractPart, rate: float) -> tuple[float, float]:
        """One optimizer step; its loss and the norm of its gradient."""
        set_rates(self._optimizers, rate)
        total = torch.zeros((), device=self._accelerator.device)
        passes = list(self._passes(part))
        for x_0, times, draw in passes:
            loss = self._loss(part, x_0, times, draw) / len(passes)
            self._accelerator.backward(loss)
            total += loss.detach()
        norm = float(self._accelerator.clip_grad_norm_(self._loss.parameters(), self._settings.clip))
        mean = float(self._accelerator.reduce(total, "mean"))
        if not math.isfinite(mean) or not math.isfinite(norm):
            raise ValueError(
                f"training broke down at step {self.step + 1}: loss {mean}, gradient norm {norm}. The weights saved "
                "last are sound; lower the learning rates of the recipe's [optimizer] or set `objective.max_weight`."
            )
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.average.update()
        return mean, norm

    def _passes(self, part: AbstractPart) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Clean tokens, times and draws of each pass of this process in one optimizer step."""
        device, length = self._accelerator.device, self._windows.length
        times = stratified_times(self._randomness, self.step, part.batch_size, part.num_times)
        pieces = self._accelerator.num_processes * self._run.accumulation
        if part.batch_size % pieces:
            raise ValueError(
                f"`run.batch_size` must be divisible among {pieces} passes (processes times accumulation); "
                f"got {part.batch_size}."
            )
        size = part.batch_size // pieces
        for turn in range(self._run.accumulation):
            start = (turn * self._accelerator.num_processes + self._accelerator.process_index) * size
            row = torch.arange(start, start + size)
            draw = self._randomness.uniform(
                row[:, None], self.step, torch.arange(length)[None], stream=_CORRUPTION
            )
            x_0 = self._windows.batch(self.sequences + start, size)
            yield x_0.to(device), times[start : start + size].to(device), draw.to(device)


def _has_compiler(device: torch.device) -> bool:
    """Whether `torch.compile` has what it needs: on a CPU, a C++ compiler."""
    return device.type != "cpu" or shutil.which(os.environ.get("CXX", "g++")) is not None
