"""Many samples: written batch by batch, saved during the run, resumed after an interruption, by many processes.

Sample `k` is a function of the seed and `k`: neither the batch size, nor the number of processes, nor an interruption
changes it. The file has one JSON object per line: first the settings of the samples, then the samples, each with its
`index`. A line is appended for each new sample; an incomplete last line is dropped. With several processes, each writes
its own part beside the file; the parts are merged in order when all are done.
"""

from __future__ import annotations

import glob
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import torch

from hdlm.atomic import keeping, replacing
from hdlm.checkpoint import Checkpoint
from hdlm.denoiser import resolve_device
from hdlm.distributed import ALONE, Processes
from hdlm.evaluation.generation.corrections import revisions
from hdlm.evaluation.records import protocol
from hdlm.generation import BLANK, Ending, Settings, write
from hdlm.sampling import ApproximateCache, Frame, Trace

__all__ = [
    "DRAW_DTYPE",
    "Sample",
    "draw_samples",
    "drawn_with",
    "num_evaluations",
    "tokens_per_forward",
    "tokens_per_second",
]

DRAW_DTYPE = "float64"
"""The precision in which `hdlm.sampling.draws` always draws."""
_NO_END = Ending()


@final
@dataclass(frozen=True)
class Sample:
    """One generated text and its cost.

    Attributes:
        text: The text, including the prompt.
        tokens: The token ids, including special tokens.
        given: Number of given tokens at the beginning.
        num_evaluations: Network calls for the batch of the sample, or their mean over batches.
        seconds: Time for the batch, divided by its number of samples.
        revisions: Revised words by kind and step; see `hdlm.evaluation.generation.corrections`.
        evaluations: Network calls that the sample took part in; 0 if that was not recorded.
    """

    text: str
    tokens: list[int]
    given: int
    num_evaluations: int | float
    seconds: float
    revisions: dict[str, dict[int, int]]
    evaluations: int = 0

    @property
    def written(self) -> list[int]:
        """The tokens that were not given."""
        return self.tokens[self.given :]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Sample:
        """Build a sample from the result of `asdict` that was read from JSON, with or without an index."""
        steps = {kind: {int(k): v for k, v in counts.items()} for kind, counts in values["revisions"].items()}
        rest = {name: value for name, value in values.items() if name != "index"}
        return cls(**{**rest, "revisions": steps})


def draw_samples(
    checkpoint: Checkpoint,
    settings: Settings,
    *,
    prompt: str = "",
    num: int = 1,
    batch_size: int | None = None,
    seed: int = 0,
    ending: Ending = _NO_END,
    approximate: ApproximateCache | None = None,
    device: torch.device | str | None = None,
    keep: Path | None = None,
    processes: Processes = ALONE,
    watch: Callable[[int, float], None] | None = None,
) -> list[Sample]:
    """Write samples, or resume an earlier run.

    Args:
        checkpoint: The checkpoint of the model.
        settings: Settings of the sampler.
        prompt: Text at the beginning of all samples.
        num: Number of samples, at least 1.
        batch_size: Samples per batch; by default as many as fit, halved when memory runs out.
        seed: Seed of all randomness.
        ending: Where samples may end before the canvas is full.
        approximate: A cache that changes logits.
        device: The device of the model, which is the default; another device is refused.
        keep: The file in which samples are saved; samples that it already holds are used.
        processes: All processes that share the work; they need a file.
        watch: Called after every step with the number of samples that this process has finished or need not write, and
            with the share of the work that is done.

    Raises:
        ValueError: If the prompt has gaps, a setting is out of range, several processes have no file, the file holds
            samples with other settings, or samples would depend on their batch (guidance with an approximate cache).
    """
    if approximate is not None and settings.guidance:
        raise ValueError(
            "With guidance all sequences of a batch take the same steps, and with an approximate cache samples "
            "would depend on one another: "
            "leave one of them out."
        )
    if BLANK.search(prompt):
        raise ValueError("samples to be scored continue a prompt: it must have no [MASK].")
    if keep is None and processes.count > 1:
        raise ValueError("several processes collect their samples in a file: give `keep`.")
    made_with = drawn_with(checkpoint, settings, prompt, seed, ending, approximate)
    kept = None if keep is None else _Kept(keep, made_with, processes.rank)
    samples = {} if kept is None else kept.read()
    device = resolve_device(checkpoint.denoiser, device)
    unit = size = batch_size or (16 if device.type == "cpu" else 64)
    turn = processes.count, processes.rank
    left = [index for index in range(num) if index not in samples and index // unit % turn[0] == turn[1]]
    how = {"ending": ending, "approximate": approximate}
    while left:
        some = _run_of(left, size)
        tell = None if watch is None else partial(_tell, watch, num - len(left), len(some), num)
        try:
            new = _batch(checkpoint, prompt, settings, some, tell, seed=seed, **how)
        except torch.OutOfMemoryError:
            if batch_size is not None or size == 1:
                raise
            size //= 2
            continue
        if kept is not None:
            kept.add(new)
        samples |= new
        left = left[len(some) :]
    if kept is not None:
        processes.wait()
        if processes.is_main:
            kept.put_together()
        processes.wait()
        samples = kept.read() if processes.count > 1 else samples
    return [samples[index] for index in range(num)]


def drawn_with(
    checkpoint: Checkpoint,
    settings: Settings,
    prompt: str = "",
    seed: int = 0,
    ending: Ending = _NO_END,
    approximate: ApproximateCache | None = None,
) -> dict[str, Any]:
    """All inputs that samples depend on, ready for JSON; arguments as in `draw_samples`."""
    return {
        "settings": asdict(settings),
        "prompt": prompt,
        "seed": seed,
        "ending": {"at_end_of_text": ending.at_end_of_text, "strings": list(ending.strings)},
        "approximate": None if approximate is None else asdict(approximate),
        "weights_sha256": protocol.weights_sha256(checkpoint.network),
        "process": repr(checkpoint.denoiser.process),
        "parameterization": repr(checkpoint.denoiser.parameterization),
        "hyperschedules": repr(checkpoint.hyperschedules),
        "noise_schedule": repr(checkpoint.noise_schedule),
        "visibility": [checkpoint.context, checkpoint.active],
        "length": checkpoint.length,
        "dtype": str(next(checkpoint.network.parameters()).dtype),
        "tokenizer_sha256": hashlib.sha256(str(checkpoint.tokenizer_json).encode()).hexdigest(),
        "hdlm": protocol.versions()["hdlm"],
    }


def num_evaluations(samples: Sequence[Sample]) -> float:
    """Network calls per batch; the mean over samples if batches differ."""
    return sum(sample.num_evaluations for sample in samples) / len(samples)


def tokens_per_second(samples: Sequence[Sample]) -> float:
    """Tokens written per second."""
    return sum(len(sample.written) for sample in samples) / sum(sample.seconds for sample in samples)


def tokens_per_forward(samples: Sequence[Sample]) -> float | None:
    """Tokens written for each network call that a sample took part in; None if the calls were not recorded."""
    calls = [sample.evaluations for sample in samples]
    return sum(len(sample.written) for sample in samples) / sum(calls) if all(calls) else None


def _run_of(left: Sequence[int], most: int) -> range:
    """The first consecutive indices, at most `most`."""
    count = 1
    while count < min(most, len(left)) and left[count] == left[0] + count:
        count += 1
    return range(left[0], left[0] + count)


def _tell(watch: Callable[[int, float], None], begun: int, size: int, num: int, frame: Frame) -> None:
    """Report the progress of a batch of `size` samples after `begun` finished samples."""
    watch(begun, (begun + frame.share * size) / num)


def _batch(
    checkpoint: Checkpoint,
    prompt: str,
    settings: Settings,
    indices: range,
    watch: Callable[[Frame], None] | None,
    **how: Any,
) -> dict[int, Sample]:
    trace = Trace(checkpoint.vocabulary.mask_id, alternatives=None)

    def seen(frame: Frame) -> None:
        trace(frame)
        if watch is not None:
            watch(frame)

    begin, size = time.perf_counter(), len(indices)
    passages = write(
        checkpoint,
        prompt,
        settings,
        num=size,
        first_sequence=indices.start,
        watch=seen,
        **how,
    )
    seconds = (time.perf_counter() - begin) / size
    taken_back = [change for change in trace.changes if change.reason != "unmasked"]
    return {
        index: Sample(
            passage.text,
            list(passage.tokens),
            passage.given,
            passage.num_evaluations,
            seconds,
            revisions(taken_back, index),
            passage.evaluations,
        )
        for index, passage in zip(indices, passages, strict=True)
    }


@final
@dataclass(frozen=True)
class _Kept:
    """The file of samples, and its parts.

    Attributes:
        path: Path of the file.
        made_with: The settings of the samples in the file.
        rank: Rank of this process; rank 0 appends to the file.
    """

    path: Path
    made_with: Mapping[str, Any]
    rank: int

    def read(self) -> dict[int, Sample]:
        """Samples of this run and earlier runs, by index.

        Raises:
            ValueError: If the samples have other settings, or a file has another format.
        """
        samples: dict[int, Sample] = {}
        for path in [self.path, *self._parts]:
            samples |= self._samples(path) if path.exists() and path.stat().st_size else {}
        return samples

    def add(self, new: Mapping[int, Sample]) -> None:
        """Append samples.

        Raises:
            NotKeptError: If the samples cannot be written.
        """
        path = self.path if self.rank == 0 else self.path.with_name(f"{self.path.name}.part-{self.rank}")
        lines = [_line({"index": index, **asdict(sample)}) for index, sample in new.items()]
        with keeping(lambda: b"".join(lines).decode(), path):
            self._append(path, lines)

    def _append(self, path: Path, lines: Sequence[bytes]) -> None:
        """Append lines after the last complete line."""
        if not path.exists() or not path.stat().st_size:
            self._write(path, {})
        with path.open("r+b") as file:
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
            file.seek(whole)
            for line in lines:
                file.write(line)
                file.flush()

    def put_together(self) -> None:
        """Write all samples into the file, in order, and delete the parts."""
        parts = self._parts
        if parts:
            self._write(self.path, dict(sorted(self.read().items())))
        for part in parts:
            part.unlink()

    @property
    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{glob.escape(self.path.name)}.part-*"))

    def _write(self, path: Path, samples: Mapping[int, Sample]) -> None:
        lines = [
            self.made_with,
            *({"index": index, **asdict(sample)} for index, sample in samples.items()),
        ]
        with replacing(path) as aside:
            aside.write_bytes(b"".join(map(_line, lines)))

    def _samples(self, path: Path) -> dict[int, Sample]:
        *lines, _ = path.read_bytes().split(b"\n")
        try:
            first, *rest = [json.loads(line) for line in lines]
            samples = {int(entry["index"]): Sample.from_dict(entry) for entry in rest}
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path} is not a file of samples ({error}): remove it, or choose another place."
            ) from error
        first = _with_new_settings(first)
        if first != self.made_with:
            apart = [
                name
                for name, value in self.made_with.items()
                if not isinstance(first, dict) or first.get(name) != value
            ]
            raise ValueError(
                f"{path} has samples that were made with other settings ({', '.join(apart)} differ): remove it, "
                "or choose another place."
            )
        return samples


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"


def _with_new_settings(made_with: Any) -> Any:
    """The recorded settings, with the defaults of settings that did not exist when they were recorded."""
    if not (isinstance(made_with, dict) and isinstance(made_with.get("settings"), dict)):
        return made_with
    return made_with | {"settings": asdict(Settings()) | made_with["settings"]}
