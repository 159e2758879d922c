"""The training loop: one optimizer step noises one batch, computes its loss and updates the weights.

    step n: part of the mixture -> windows -> times and draws -> canvas -> objective -> gradient -> weights, average

Everything random in step `n` is a function of (seed, n) for the global batch; each process, and each pass of an
accumulated step, uses its own rows of it. Dropout also depends on which rows share a pass. The engine is `accelerate`.
Watchers see each step and change nothing. No step waits for an accelerator: the results of one step are read while the
next one runs.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, final

import torch
from accelerate.utils import DistributedType
from jaxtyping import Float, Int
from torch import Tensor, nn

from hdlm.data import AbstractWindows
from hdlm.data.packing import Samples
from hdlm.data.prefetch import Prefetch
from hdlm.denoiser import Denoiser
from hdlm.network import AbstractNetwork, build_network, has_compiler
from hdlm.objective import stratified_times
from hdlm.randomness import Randomness
from hdlm.training.checkpoints.state import (
    TrainingState,
    gather_optimizers,
    group_names,
    spread_optimizers,
    whole_state_dicts,
)
from hdlm.training.distributed.accelerator import agreed_precision, make_engine, refuse_fsdp
from hdlm.training.distributed.sharding import full_tensor, named_parameters, spread_like
from hdlm.training.interrupt import StopRequest
from hdlm.training.lora import adapters_of, merged
from hdlm.training.mixture import Mixture
from hdlm.training.optim.ema import ExponentialMovingAverage
from hdlm.training.optim.optimizers import make_optimizers, set_rates
from hdlm.training.parts import AbstractPart
from hdlm.training.recipe import OptimizerSettings, RunSettings
from hdlm.transfer import moved

__all__ = ["StepReport", "Trainer", "Watcher"]

_CORRUPTION, _DROPOUT = 0x91, 0x92
"""Random streams of this module."""
_PREEMPTS = 2.0**20
"""Vote of a preempted process: more than the number of processes that can vote 1 for Ctrl-C."""


@final
class StepReport:
    """The result of one optimizer step.

    An accelerator runs asynchronously, so reading the loss or the gradient norm waits for the device. Watchers
    therefore keep reports, and read them only when they write.

    Attributes:
        step: Number of the step, from 1.
        rate: Learning rate relative to its peak.
        tokens: Tokens that all steps so far have trained on.
        seconds: Training time since the run began, equal in all processes.
        progress: Share of the run that is done, in [0, 1].
    """

    def __init__(
        self,
        *,
        step: int,
        loss: float | Tensor,
        gradient_norm: float | Tensor,
        rate: float,
        tokens: int,
        seconds: float,
        progress: float,
        wait: Callable[[], object] = lambda: None,
    ) -> None:
        self.step, self.rate, self.tokens, self.seconds, self.progress = step, rate, tokens, seconds, progress
        self._loss, self._gradient_norm, self._wait = loss, gradient_norm, wait

    @property
    def loss(self) -> float:
        """Mean loss per position of the global batch, in nats."""
        self._wait()
        return float(self._loss)

    @property
    def gradient_norm(self) -> float:
        """Norm of the gradient before it was clipped."""
        self._wait()
        return float(self._gradient_norm)

    def check(self) -> None:
        """Refuse a loss or gradient norm that is not finite.

        Raises:
            ValueError: If one is not finite; it names the step.
        """
        if not math.isfinite(self.loss) or not math.isfinite(self.gradient_norm):
            raise ValueError(
                f"training diverged at step {self.step}: loss {self.loss}, gradient norm {self.gradient_norm}. The "
                "last saved weights are finite. Lower the learning rates in the recipe's [optimizer] or set "
                "`objective.max_weight`, and begin another run from the model in that folder."
            )


Watcher: TypeAlias = Callable[[StepReport], None]
"""Called after each step: for example a progress bar or a log."""


@final
@dataclass(frozen=True)
class _Batch:
    """The inputs of one pass, on the host.

    Attributes:
        x_0: Ids of clean tokens.
        times: Stratified numbers in [0, 1).
        draw: A uniform number in [0, 1) for each position.
        seed: Seed of dropout.
        samples: The samples in each window, if they are packed or have prompts.
    """

    x_0: Int[Tensor, "b l"]
    times: Float[Tensor, "b e"]
    draw: Float[Tensor, "b l"]
    seed: int
    samples: Samples | None = None


@final
@dataclass(frozen=True)
class _PendingScalars:
    """Numbers that are copied from the device to the host.

    Attributes:
        values: Numbers on the host, valid after `wait`.
        wait: Returns when they have arrived.
    """

    values: Tensor
    wait: Callable[[], object]

    @classmethod
    def of(cls, values: Tensor) -> _PendingScalars:
        """Start the copy."""
        if values.device.type == "cpu":
            return cls(values, lambda: None)
        arrived = torch.get_device_module(values.device).Event()
        host = values.to("cpu", non_blocking=True)
        arrived.record()
        return cls(host, arrived.synchronize)


@final
class _Loss(nn.Module):
    """Mean loss of a clean batch: the one module that `accelerate` wraps, so that gradients are averaged."""

    def __init__(self, denoiser: Denoiser, precision: str) -> None:
        super().__init__()
        self.denoiser = denoiser
        # The name is that of `transformers`: FSDP shards modules of these classes one by one.
        self._no_split_modules = sorted({type(block).__name__ for block in denoiser.backbone.blocks})
        self.bf16 = precision == "bf16"

    def forward(
        self, part: AbstractPart, batch: _Batch, counts: list[float] | None = None
    ) -> Float[Tensor, ""]:
        """Mean over all positions with a target; noise is drawn on the host, so nothing waits for the device."""
        with torch.autocast(self.denoiser.device.type, torch.bfloat16, enabled=self.bf16):
            return part.loss(self.denoiser, batch.x_0, batch.times, batch.draw, batch.samples, counts)


@final
class Trainer:
    """Trains the network of a denoiser.

    Args:
        denoiser: The model; its weights change in place.
        mixture: Determines what each step trains on.
        windows: The training text.
        optimizer: Settings of the optimizers.
        run: Length of the run, batch size and precision.
        device: Device of the training.

    Attributes:
        average: Moving average of the weights.
        precision: Precision of the network's computation, `"bf16"` or `"no"`.
        step: Optimizer steps done.
        sequences: Windows of text used by these steps.
        seconds: Time spent on these steps.
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
        self._denoiser, self._randomness = denoiser, Randomness(run.seed)
        self._accelerator = make_engine(run, device)
        self.precision = agreed_precision(run.precision, device)
        if self._accelerator.distributed_type == DistributedType.FSDP and not denoiser.backbone.shards:
            refuse_fsdp(type(denoiser.backbone).__name__)
        self._network: AbstractNetwork = denoiser.backbone.to(self._accelerator.device)
        self.step, self.sequences, self.seconds = 0, 0, 0.0
        self._last: StepReport | None = None
        self._votes = 0.0
        self._unread: _PendingScalars | None = None
        self._memories = make_optimizers(self._network, optimizer)
        self._names = group_names(self._network, self._memories)
        if run.compile and has_compiler(device):
            self._network.features = torch.compile(self._network.features)
        elif run.compile and self.is_main:
            warnings.warn("`run.compile` has no effect: there is no compiler here.", stacklevel=2)
        prepared = self._accelerator.prepare(_Loss(denoiser, self.precision), *self._memories)
        self._loss, self._optimizers = prepared[0], list(prepared[1:])
        self.average = ExponentialMovingAverage(self._network, optimizer.ema)

    @property
    def preempted(self) -> bool:
        """Whether a scheduler asked one of the processes to stop before the end."""
        return self._votes >= _PREEMPTS and not self.is_over

    @property
    def is_over(self) -> bool:
        """Whether no step is left."""
        return self._run.progress(self.step, self.seconds) >= 1

    @property
    def tokens(self) -> int:
        """Tokens that all steps so far have trained on."""
        return self.sequences * self._windows.length

    @property
    def is_alone_on_cpu(self) -> bool:
        """Whether a single process trains, on a CPU."""
        return bool(self._accelerator.num_processes == 1 and self._accelerator.device.type == "cpu")

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and messages."""
        return bool(self._accelerator.is_main_process)

    def train(self, stop: StopRequest, watchers: Sequence[Watcher] = ()) -> StepReport | None:
        """Take steps until the end, or until somebody asks to stop.

        Args:
            stop: Turns true when somebody asks.
            watchers: Called after each step, in every process.

        Returns:
            The report of the last step; None if no step was taken.

        Raises:
            ValueError: If the loss is not finite.
        """
        self._loss.train()
        self._accelerator.gradient_accumulation_steps = self._run.accumulation
        began = time.perf_counter() - self.seconds
        before, self._last = None, None
        with Prefetch(self._windows) as windows:
            while not self._ends(stop):
                before, self._last = self._last, self._take_step(windows, stop, began)
                self._check(before)
                for watcher in watchers:
                    watcher(self._last)
        self.settle()
        self._loss.eval()
        return self._last

    def settle(self) -> None:
        """Wait until the device has finished the last step.

        Raises:
            ValueError: If its loss is not finite, so that the weights must not be saved.
        """
        if self._last is not None:
            self._last.check()

    @contextmanager
    def averaged_model(self) -> Iterator[Denoiser | None]:
        """Give the denoiser its averaged weights, in evaluation mode, inside a `with` block.

        Yields:
            The denoiser in the main process; None in all others, which must enter the block too.
        """
        self.settle()
        training = self._loss.training
        self._loss.eval()
        try:
            if self._is_spread:
                yield self._copy(self.average.state_dict())
            else:
                with self.average.swapped_in():
                    yield self._denoiser if self.is_main else None
        finally:
            self._loss.train(training)

    def state(self) -> TrainingState:
        """Everything that `restore` needs; all processes must call this."""
        self.settle()
        parameters = {**self._network.state_dict(), **named_parameters(self._network)}
        weights = {name: full_tensor(value).cpu() for name, value in parameters.items()}
        average = {name: value.cpu() for name, value in self.average.state_dict().items()}
        both = {"weights": adapters_of(weights), "average": adapters_of(average)}
        return TrainingState(
            step=self.step,
            sequences=self.sequences,
            seconds=self.seconds,
            ticks=self.average.ticks,
            precision=self.precision,
            device=self._accelerator.device.type,
            processes=self._accelerator.num_processes,
            weights=merged(self._network, weights),
            average=merged(self._network, average),
            optimizers=gather_optimizers(self._network, self._memories),
            text=self._windows.fingerprint,
            threads=torch.get_num_threads(),
            adapters={f"{kind}/{name}": v for kind, own in both.items() for name, v in own.items()},
        )

    @torch.no_grad()
    def restore(self, state: TrainingState) -> None:
        """Continue from a training state, on any number of processes.

        Raises:
            ValueError: If the state belongs to another network, other optimizers or other text.
        """
        if state.text != self._windows.fingerprint:
            raise ValueError(
                "the text or its tokenizer is not the one that the run began with, so the order of the text differs: "
                "restore both, or begin another run from its model."
            )
        self.step, self.sequences, self.seconds = state.step, state.sequences, state.seconds
        if self._run.precision == "auto" and state.device == self._accelerator.device.type:
            self._set_precision(state.precision)
        self._load(state)
        if self.step:
            set_rates(self._optimizers, self._settings.rate(self._run.progress(self.step - 1, self.seconds)))

    @torch.no_grad()
    def inherit(self, state: TrainingState, *, keep_step: bool = False) -> None:
        """Begin with the weights, the average and the optimizer state of another run, on other text.

        Args:
            state: The training state of that run.
            keep_step: Whether its steps count, so that the learning rate continues from there; else they begin at 0.

        Raises:
            ValueError: If the network or the optimizers differ, or if no step would be left.
        """
        if keep_step and self._run.progress(state.step, 0.0) >= 1:
            raise ValueError(
                f"the source run has taken {state.step} steps and they count, so none of `run.steps`={self._run.steps} "
                "is left: increase it, or let the steps begin at 0."
            )
        self._load(state)
        self.step = state.step if keep_step else 0

    def published_state(self) -> dict[str, Any]:
        """Everything that a `checkpoint_STEP.pth` of the published trainer holds; all processes must call this."""
        self.settle()
        average = self.average.state_dict()
        names = list(named_parameters(self._network))
        return {
            "optimizer": whole_state_dicts(self._network, self._memories, self._names),
            "model": {name: full_tensor(value).cpu() for name, value in self._network.state_dict().items()},
            "ema": {
                "decay": self.average.decay,
                "optimization_step": self.average.ticks,
                "shadow_params": [average[name].cpu() for name in names],
            },
            "step": self.step,
        }

    def extend(self, minutes: float) -> None:
        """Change the time limit of a run that is limited by minutes; the learning rate follows from the next step on.

        Raises:
            ValueError: If the run is limited by steps.
        """
        if self._run.minutes is None:
            raise ValueError(f"a run that ends after {self._run.steps} steps cannot be extended by minutes.")
        self._run = replace(self._run, minutes=minutes)

    def wait(self) -> None:
        """Wait for all processes."""
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Wait for all processes, and leave the process group."""
        self._accelerator.wait_for_everyone()
        self._accelerator.end_training()

    def _load(self, state: TrainingState) -> None:
        """Copy weights, average and optimizer state."""
        weights, average = (
            {
                **tensors,
                **{key.removeprefix(kind): v for key, v in state.adapters.items() if key.startswith(kind)},
            }
            for kind, tensors in (("weights/", state.weights), ("average/", state.average))
        )
        for name, parameter in named_parameters(self._network).items():
            if name not in weights:
                raise ValueError(
                    f"the state has no {name}: it is of a run with other adapters, or without them."
                )
            parameter.copy_(spread_like(weights[name], parameter))
        self.average.restore(average, state.ticks)
        spread_optimizers(self._network, self._memories, state.optimizers)

    @property
    def _is_spread(self) -> bool:
        """Whether the weights are sharded over processes."""
        return any(hasattr(parameter, "full_tensor") for parameter in self._network.parameters())

    def _set_precision(self, precision: str) -> None:
        self.precision = precision
        self._accelerator.unwrap_model(self._loss).bf16 = precision == "bf16"

    def _copy(self, weights: Mapping[str, Tensor]) -> Denoiser | None:
        """A denoiser with these whole weights, in the main process."""
        if not self.is_main:
            return None
        network = build_network(self._network.config)
        network.load_state_dict(merged(self._network, weights))
        copy = Denoiser(network, self._denoiser.process, self._denoiser.parameterization)
        return copy.to(self._accelerator.device).eval()

    def _ends(self, stop: StopRequest) -> bool:
        """Whether the run has ended or somebody asked to stop; all processes get the same answer."""
        if self._accelerator.num_processes == 1:
            self._votes = _vote(stop)
        return self._votes > 0 or self.is_over

    def _check(self, before: StepReport | None) -> None:
        """Check the newest step that needs no waiting: on an accelerator, the one before the last."""
        newest = self._last if self._accelerator.device.type == "cpu" else before
        if newest is not None:
            newest.check()

    def _take_step(self, windows: Prefetch, stop: StopRequest, began: float) -> StepReport:
        progress = self._run.progress(self.step, self.seconds)
        part = self._mixture.at(self.step, progress)
        rate = self._settings.rate(progress)
        self._expect(part, windows)
        loss, norm = self._descend(part, rate, windows)
        self.step += 1
        self.sequences += part.batch_size
        news = self._share(loss, norm, stop, time.perf_counter() - began)
        return StepReport(
            step=self.step,
            loss=news.values[0],
            gradient_norm=news.values[1],
            rate=rate,
            tokens=self.tokens,
            seconds=self.seconds,
            progress=self._run.progress(self.step, self.seconds),
            wait=news.wait,
        )

    def _descend(self, part: AbstractPart, rate: float, windows: Prefetch) -> tuple[Tensor, Tensor]:
        """Update the weights; returns this process's mean loss and the gradient norm of the global batch."""
        set_rates(self._optimizers, rate)
        losses, passes = [], list(self._passes(part, windows))
        counts = self._counts(part, passes)
        for batch in passes:
            with self._accelerator.accumulate(self._loss):
                torch.manual_seed(batch.seed)
                loss = self._loss(part, batch, counts)
                self._accelerator.backward(loss)
                losses.append(loss.detach())
        norm = self._accelerator.clip_grad_norm_(self._loss.parameters(), self._settings.clip)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.average.update()
        return torch.stack(losses).mean(), full_tensor(torch.as_tensor(norm, device=self._accelerator.device))

    def _counts(self, part: AbstractPart, passes: list[_Batch]) -> list[float] | None:
        """The mean over all passes of the numbers of tokens that the loss is divided by; None if it has its own.

        Passes with different numbers have equal weights otherwise, and the gradient is not that of one batch.
        """
        processes = self._accelerator.num_processes
        if not part.divides_by_tokens or processes * len(passes) == 1:
            return None
        own = [part.counts(self._denoiser, b.x_0, b.times, b.draw, b.samples) for b in passes]
        counts = torch.stack(own).mean(0)
        if processes > 1:
            counts = self._accelerator.reduce(counts.to(self._accelerator.device), "mean")
        return list(counts.tolist())

    def _share(self, loss: Tensor, norm: Tensor, stop: StopRequest, now: float) -> _PendingScalars:
        """Copy the loss and the norm to the host; processes agree on the time and on whether to stop.

        The numbers of an accelerator are read one step later, so that nothing waits for it.
        """
        if self._accelerator.num_processes == 1:
            self.seconds = now
            return _PendingScalars.of(torch.stack([loss, norm]))
        mine = torch.tensor([_vote(stop), now if self.is_main else 0.0], dtype=torch.float64)
        share = (loss / self._accelerator.num_processes).double()[None]
        both = torch.cat([share, *moved([mine], loss.device)])
        total = self._accelerator.reduce(both, "sum")
        news = _PendingScalars.of(torch.cat([total[:1], norm.double()[None], total[1:]]))
        readable, self._unread = (news, None) if loss.device.type == "cpu" else (self._unread, news)
        if readable is not None:
            readable.wait()
            self._votes, self.seconds = readable.values[2:].tolist()
        return news

    def _passes(self, part: AbstractPart, windows: Prefetch) -> Iterator[_Batch]:
        """The inputs of each pass of this process in one optimizer step."""
        times = stratified_times(self._randomness, self.step, part.batch_size, part.num_times)
        position = torch.arange(windows.length)[None]
        for start, size in self._rows(part):
            row = torch.arange(start, start + size)
            yield _Batch(
                windows.batch(self.sequences + start, size),
                times[start : start + size],
                self._randomness.uniform(row[:, None], self.step, position, stream=_CORRUPTION),
                int(2**53 * self._randomness.uniform(row[0], self.step, row[0] * 0, stream=_DROPOUT)),
                windows.samples(self.sequences + start, size),
            )

    def _expect(self, part: AbstractPart, windows: Prefetch) -> None:
        """Read the text of the next step while this one, of `part`, runs."""
        first, step = self.sequences + part.batch_size, self.step + 1
        for start, size in self._rows(self._mixture.at(step, self._run.progress(step, self.seconds))):
            windows.expect(first + start, size)

    def _rows(self, part: AbstractPart) -> list[tuple[int, int]]:
        """First row in the global batch, and number of rows, of each pass of this process."""
        processes, turns = self._accelerator.num_processes, self._run.accumulation
        if part.batch_size % (processes * turns):
            raise ValueError(
                f"`run.batch_size` must be divisible by {processes * turns}, the processes times the accumulation; "
                f"got {part.batch_size}."
            )
        size = part.batch_size // (processes * turns)
        return [((turn * processes + self._accelerator.process_index) * size, size) for turn in range(turns)]


def _vote(stop: StopRequest) -> float:
    """This process's vote, so that the sum shows whether any process stops (> 0) or was preempted (>= `_PREEMPTS`)."""
    return _PREEMPTS if stop.preempts else float(bool(stop))
