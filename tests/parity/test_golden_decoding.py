"""Recorded generations of published samplers, token by token, through the steps of this package.

The arrays are those of `golden/modern`. A name with FAULT shows a fault of published code, and the tests assert the
right behaviour. `test_golden_modern.py` has the logits of these networks, and the basic rules of confidence.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hdlm
from hdlm.checkpoint import Checkpoint
from hdlm.denoiser import AbstractDenoiser, Denoiser, ForwardContext, Prediction
from hdlm.hub.card import Blueprint
from hdlm.hyperschedule import AbstractHyperschedule, Block, Table, flat
from hdlm.noise_schedule import LINEAR, AbstractNoiseSchedule, Interpolated
from hdlm.process import Absorbing
from hdlm.regime import Regime
from hdlm.sampling import (
    Ancestral,
    ApproximateCache,
    ByConfidence,
    ByThreshold,
    EntropyRenoising,
    Execution,
    Frame,
    Generation,
    InParts,
    Move,
    Prompt,
    Step,
    Suppress,
    Temperature,
    Transform,
    sample,
)
from tests.parity.test_golden_modern import ours

inspect = import_module("hdlm.hub.load").inspect


@dataclass(frozen=True)
class Golden:
    """A folder of published weights and what their code recorded."""

    model: Checkpoint
    blueprint: Blueprint
    arrays: Any
    cases: dict[str, Any]

    @classmethod
    def of(cls, shared: Path, name: str) -> Golden:
        options = {"mask_id": 11} if name == "diffullama" else {}
        folder = shared / "golden" / "modern" / name
        cases = json.loads((folder / "cases.json").read_text())
        blueprint = inspect(folder, **options).blueprint
        return cls(hdlm.load(folder, **options), blueprint, np.load(folder / "io.npz"), cases)

    def ids(self, name: str) -> Tensor:
        """An array of token ids, as ids of this package."""
        return ours(torch.from_numpy(self.arrays[name]).long(), self.blueprint)

    def words(self, *ids: int) -> tuple[int, ...]:
        return tuple(ours(torch.tensor(ids), self.blueprint).tolist())

    @property
    def mask(self) -> int:
        return self.blueprint.vocabulary.mask_id

    def write(
        self,
        canvas: Tensor,
        step: Step,
        schedule: AbstractHyperschedule,
        *,
        noise: AbstractNoiseSchedule = LINEAR,
        denoiser: AbstractDenoiser | None = None,
        **options: Any,
    ) -> Generation:
        """Write at the masks of a canvas."""
        canvas = canvas.view(-1, canvas.shape[-1])
        return sample(
            self.model.denoiser if denoiser is None else denoiser,
            Regime(schedule, noise, self.model.context),
            step,
            num_sequences=len(canvas),
            prompt=Prompt(canvas, canvas != self.mask),
            **options,
        )


def dream_noise(steps: int) -> Interpolated:
    """Noise of Dream falls to 1e-3 on even steps."""
    return Interpolated(tuple(1e-3 + (1 - 1e-3) * k / steps for k in range(1, steps + 1)))


def continued(golden: Golden, case: str) -> tuple[Tensor, Tensor]:
    """The canvas of a recorded continuation, and the recorded text."""
    prompt, out = (golden.ids(f"gen_{case}_{name}").flatten() for name in ("prompt", "out"))
    canvas = out.clone()
    canvas[len(prompt) :] = golden.mask
    return canvas, out


# --- Fast-dLLM -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "case",
    [
        pytest.param("one_at_a_time", marks=pytest.mark.slow),
        pytest.param("threshold", marks=pytest.mark.slow),
        "short_prompt",
        "prompt_of_two_blocks",
        pytest.param("block_cache", marks=pytest.mark.slow),
    ],
)
def test_sub_blocks_of_fast_dllm_v2(shared: Path, case: str) -> None:
    """Sub-blocks of 8 in blocks of 32 with a threshold, behind the exact cache, and with the cache of a block."""
    golden = Golden.of(shared, "fast_dllm_v2")
    canvas, out = continued(golden, case)
    step = InParts(ByThreshold(float(golden.cases[case]["threshold"]), greedy=True), 8, 32)
    cached = ApproximateCache(active=True) if case == "block_cache" else None
    written = golden.write(canvas, step, Block(len(out), 32, 1), execution=Execution(approximate=cached))
    assert written.tokens[0].tolist() == out.tolist()
    calls = golden.arrays[f"gen_{case}_calls"]
    assert written.num_evaluations <= len(calls)
    if cached is not None:
        assert int(written.computed) < 1.1 * (calls >= 0).sum()


@pytest.mark.slow
def test_batch_of_fast_dllm_v2(shared: Path) -> None:
    """Rows of unequal length in one batch."""
    golden = Golden.of(shared, "fast_dllm_v2")
    prompts, lengths, out = (
        torch.from_numpy(golden.arrays[f"batch_{name}"]) for name in ("prompts", "lengths", "out")
    )
    given = [
        ours(row[:length].long(), golden.blueprint).tolist()
        for row, length in zip(prompts, lengths, strict=True)
    ]
    expected = ours(out.long(), golden.blueprint)
    new = 96 - min(len(row) for row in given)
    prompt = Prompt.ragged(given, new)
    written = sample(
        golden.model.denoiser,
        golden.model.regime(Block(prompt.tokens.shape[1], 32, 1)),
        InParts(ByThreshold(0.25, greedy=True), 8, 32),
        num_sequences=len(given),
        prompt=prompt,
    )
    for row, answer in zip(written.tokens, expected, strict=True):
        assert row[:96].tolist() == answer[:96].tolist()


def test_prompt_of_one_block_is_read(shared: Path) -> None:
    """The published code does not read a prompt of exactly one block, so all such prompts continue in one way."""
    golden = Golden.of(shared, "fast_dllm_v2")
    ids = golden.ids("ids")[:2, :64].clone()
    ids[:, 32:] = golden.mask
    step, plan = InParts(ByThreshold(0.25, greedy=True), 8, 32), Block(64, 32, 1)
    written, exact = (
        golden.write(ids, step, plan, execution=Execution(use_cache=cache)).tokens for cache in (True, False)
    )
    assert torch.equal(written, exact)
    assert not torch.equal(written[0, 32:], written[1, 32:])


def test_threshold_of_fast_dllm_for_dream(shared: Path) -> None:
    golden = Golden.of(shared, "dream")
    canvases = golden.ids("gen_nv_threshold_canvas")
    step = ByThreshold(golden.cases["nv_threshold"]["threshold"], greedy=True)
    written = golden.write(canvases[0], step, flat(canvases.shape[2], 1))
    assert torch.equal(written.tokens, canvases[-1])
    assert written.num_evaluations == len(canvases) - 1


# --- SDAR ------------------------------------------------------------------------------------------------------------
def test_dynamic_threshold_of_sdar(shared: Path) -> None:
    golden = Golden.of(shared, "sdar")
    canvas, out = continued(golden, "dynamic")
    settings = golden.cases["dynamic"]
    step = ByConfidence(quota="even", greedy=True, threshold=settings["confidence_threshold"])
    plan = Block(len(out), settings["block_length"], settings["denoising_steps"])
    written = golden.write(canvas, step, plan)
    assert written.tokens[0].tolist() == out.tolist()
    assert written.num_evaluations < plan.num_steps


def test_prompt_of_sdar_is_not_overwritten(shared: Path) -> None:
    """The published code replaces tokens of the prompt if a step writes more words than there are masks."""
    golden = Golden.of(shared, "sdar")
    canvas, out = continued(golden, "overwrites_prompt_FAULT")
    given = canvas != golden.mask
    assert (out[given] != canvas[given]).any() or len(out) % 8 == 0
    written = golden.write(canvas, ByConfidence(quota="even", greedy=True), Block(len(out), 8, 1))
    assert torch.equal(written.tokens[0][given], canvas[given])
    assert (written.tokens < golden.mask).all()


# --- LLaDA and dllm --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", ["eos_inf", "eos_eot_conf", "leftpad"])
def test_generation_of_llada(shared: Path, case: str) -> None:
    golden = Golden.of(shared, "llada")
    canvases, settings = golden.ids(f"gen_{case}_canvas"), golden.cases[case]
    eos, eot = golden.words(301, 332)
    postponed = (eos, eot) if case == "eos_eot_conf" else ()
    step = ByConfidence(quota="even", greedy=True, block=settings["block_length"], postponed=postponed)
    padding = np.zeros(2, int)
    if case == "leftpad":
        padding = (1 - golden.arrays["gen_leftpad_attention_mask"]).sum(1)
    transforms = (Suppress((eos,)),) if case == "eos_inf" else ()
    for row, pad in enumerate(padding.tolist()):
        canvas, expected = canvases[0, row, pad:], canvases[-1, row, pad:]
        written = golden.write(canvas, step, flat(len(canvas), settings["steps"]), transforms=transforms)
        assert written.tokens[0].tolist() == expected.tolist()


def test_ragged_batch_gives_what_each_prompt_gives_alone(shared: Path) -> None:
    """The left-padded batch of LLaDA, here without padding."""
    golden = Golden.of(shared, "llada")
    canvases, settings = golden.ids("gen_leftpad_canvas"), golden.cases["leftpad"]
    padding = (1 - golden.arrays["gen_leftpad_attention_mask"]).sum(1).tolist()
    prompts = [canvases[0, row, pad:-12].tolist() for row, pad in enumerate(padding)]
    prompt = Prompt.ragged(prompts, settings["gen_length"])
    written = sample(
        golden.model.denoiser,
        golden.model.regime(flat(prompt.tokens.shape[1], settings["steps"])),
        ByConfidence(quota="even", greedy=True, block=settings["block_length"]),
        num_sequences=2,
        prompt=prompt,
    )
    for row, (pad, length) in enumerate(zip(padding, written.lengths.tolist(), strict=True)):
        assert written.tokens[row, :length].tolist() == canvases[-1, row, pad:].tolist()


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("llada", "dllm_suppress"),
        ("llada", "dllm_begin_suppress"),
        ("a2d_qwen3", "mdlm_shifted_option"),
        ("a2d_llama", "mdlm_shifted_option"),
    ],
)
def test_options_of_dllm(shared: Path, name: str, case: str) -> None:
    golden = Golden.of(shared, name)
    canvases, settings = golden.ids(f"{case}_canvas"), golden.cases[case]
    suppressed, postponed = (
        golden.words(*settings.get(option, ())) for option in ("suppress_tokens", "begin_suppress_tokens")
    )
    step = ByConfidence(quota="nearest", greedy=True, block=settings["block_size"], postponed=postponed)
    denoiser = golden.model.denoiser
    if settings.get("right_shift_logits"):
        denoiser = Denoiser(denoiser.backbone, denoiser.process, hdlm.Shifted(denoiser.parameterization))
    for row, given in enumerate(golden.arrays[f"{case}_lengths"].tolist()):
        part = slice(given + settings["max_new_tokens"])
        written = golden.write(
            canvases[0, row, part],
            step,
            flat(part.stop, settings["steps"]),
            denoiser=denoiser,
            transforms=(Suppress(suppressed),) if suppressed else (),
        )
        assert written.tokens[0].tolist() == canvases[-1, row, part].tolist()


@pytest.mark.parametrize(
    ("name", "case"), [("llada", "dllm_infill"), ("a2d_qwen3", "mdlm_infill"), ("a2d_llama", "mdlm_infill")]
)
def test_infilling_of_dllm(shared: Path, name: str, case: str) -> None:
    """Blocks are counted from the start of the canvas."""
    golden = Golden.of(shared, name)
    canvases, settings = golden.ids(f"{case}_canvas"), golden.cases[case]
    width, whole = settings["block_size"], canvases.shape[2]
    each = -(-settings["steps"] // -(-whole // width))
    step = ByConfidence(quota="nearest", greedy=True, block=width, from_start=True)
    for row, length in enumerate(golden.arrays[f"{case}_lengths"].tolist()):
        written = golden.write(canvases[0, row, :length], step, flat(length, each * -(-length // width)))
        assert written.tokens[0].tolist() == canvases[-1, row, :length].tolist()


def blocks_after(prompt: int, length: int, width: int, steps: int) -> Table:
    """Blocks that are counted from the end of a prompt."""
    ahead = -prompt % width
    whole = Block(length + ahead, width, steps)
    return Table(whole.levels(torch.arange(whole.num_steps + 1))[:, ahead:])


@pytest.mark.parametrize("case", ["bd3_ragged", "bd3_cfg", "bd3_one"])
@pytest.mark.parametrize("name", ["a2d_qwen3", "a2d_llama"])
def test_block_sampler_of_dllm(shared: Path, name: str, case: str) -> None:
    """Prompts are padded on the left to whole blocks, so blocks begin at the end of the prompt."""
    golden = Golden.of(shared, name)
    canvases, settings = golden.ids(f"{case}_canvas"), golden.cases[case]
    width, new = settings["block_size"], settings["max_new_tokens"]
    steps = settings.get("steps_per_block") or -(-settings["steps"] // -(-new // width))
    end = canvases.shape[2]
    for row, given in enumerate(golden.arrays[f"{case}_lengths"].tolist()):
        expected = canvases[-1, row, end - new - given :]
        canvas = expected.clone()
        canvas[given:] = golden.mask
        fixed = (canvas != golden.mask)[None]
        guidance = settings.get("cfg_scale", 0.0)
        denoiser = golden.model.denoiser
        regime = replace(
            golden.model.regime(blocks_after(given, len(canvas), width, steps)), context="block_causal"
        )
        written = sample(
            hdlm.Guided(denoiser, fixed, guidance) if guidance else denoiser,
            regime,
            ByConfidence(quota="nearest", greedy=True),
            prompt=Prompt(canvas[None], fixed),
        )
        assert written.tokens[0].tolist() == expected.tolist()


# --- Dream -----------------------------------------------------------------------------------------------------------
def test_left_padded_prompts_of_dream(shared: Path) -> None:
    golden = Golden.of(shared, "dream")
    canvases, steps = golden.ids("gen_leftpad_canvas"), golden.cases["leftpad"]["steps"]
    padding = (1 - golden.arrays["gen_leftpad_attention_mask"]).sum(1).tolist()
    for row, pad in enumerate(padding):
        canvas = canvases[0, row, pad:]
        written = golden.write(
            canvas,
            ByConfidence("entropy", "truncated", True),
            flat(len(canvas), steps),
            noise=dream_noise(steps),
        )
        assert written.tokens[0].tolist() == canvases[-1, row, pad:].tolist()


@pytest.mark.parametrize("case", ["dllm_ragged", "dllm_cfg", "dllm_infill"])
def test_generation_of_dllm_for_dream(shared: Path, case: str) -> None:
    golden = Golden.of(shared, "dream")
    canvases, settings = golden.ids(f"{case}_canvas"), golden.cases[case]
    lengths = golden.arrays[f"{case}_lengths"].tolist()
    measure: Any = "entropy" if settings["alg"] == "entropy" else "probability"
    for row, given in enumerate(lengths):
        begin = max(lengths) - given
        canvas, expected = canvases[0, row, begin:], canvases[-1, row, begin:]
        fixed = (canvas != golden.mask)[None]
        guidance = settings.get("cfg_scale", 0.0)
        denoiser = golden.model.denoiser
        written = golden.write(
            canvas,
            ByConfidence(measure, "nearest", greedy=True),
            flat(len(canvas), settings["steps"]),
            denoiser=hdlm.Guided(denoiser, fixed, guidance) if guidance else denoiser,
        )
        assert written.tokens[0].tolist() == expected.tolist()


def test_infilling_of_dream_in_a_batch(shared: Path) -> None:
    """The published sampler overwrites given tokens and leaves masks if the rows of a batch differ."""
    golden = Golden.of(shared, "dream")
    steps = golden.cases["infill_batch_FAULT"]["steps"]
    alone, batch = (golden.ids(f"gen_infill_{case}_canvas") for case in ("alone_0", "batch_FAULT"))
    canvas = batch[0]
    assert torch.equal(canvas[0], alone[0, 0])
    step, plan = ByConfidence(quota="truncated", greedy=True), flat(canvas.shape[1], steps)
    written = golden.write(
        canvas, step, plan, noise=dream_noise(steps), execution=Execution(together=True)
    ).tokens
    assert torch.equal(written[0], alone[-1, 0])
    given = canvas != golden.mask
    assert torch.equal(written[given], canvas[given])
    assert (written < golden.mask).all()
    assert (batch[-1][given] != canvas[given]).any()  # the fault


# --- DiffusionGemma --------------------------------------------------------------------------------------------------
def test_accepted_positions_of_diffusion_gemma(shared: Path) -> None:
    """The recorded entropies give the recorded decisions; the sampler's other draws are random."""
    folder = shared / "golden" / "modern" / "diffusion_gemma"
    arrays, case = np.load(folder / "io.npz"), json.loads((folder / "cases.json").read_text())["generate"]
    steps, bound = case["max_denoising_steps"], case["entropy_bound"]
    step = EntropyRenoising(bound, steps, hot=case["t_max"], cold=case["t_min"])
    accepted = torch.from_numpy(arrays["gen_acc"]).bool()
    for entropy, expected in zip(torch.from_numpy(arrays["gen_ent"]), accepted, strict=True):
        everywhere = torch.ones_like(expected)
        assert torch.equal(step.accepted(entropy, torch.zeros_like(entropy), everywhere), expected)
    drawn, new = (torch.from_numpy(arrays[f"gen_{name}"]) for name in ("den", "new"))
    assert torch.equal(new[accepted], drawn[accepted])
    # the processed logits of the first and of the last call are divided by the temperature
    logits = torch.from_numpy(arrays["gen_processed_logits_first_last"])
    for row, number in ((0, 0), (-1, -1)):
        entropy = torch.special.entr(logits[row].softmax(-1)).sum(-1)
        torch.testing.assert_close(entropy, torch.from_numpy(arrays["gen_ent"][number]), atol=1e-4, rtol=0)
    assert step.temperature(0) == case["t_max"]
    assert step.temperature(steps - 1) == pytest.approx(
        case["t_min"] + (case["t_max"] - case["t_min"]) / steps
    )


# --- random orders ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class WithTimes:
    """Another step whose masks fall at recorded times."""

    inner: Step
    times: Tensor

    def __call__(self, x: Tensor, move: Move) -> Tensor:
        def numbers(stream: int, each_step: bool) -> Tensor:
            return torch.full_like(self.times, 0.5) if each_step else self.times

        return self.inner(x, replace(move, numbers=numbers))


class MaskIsAlsoAWord(AbstractDenoiser):
    """A denoiser that may write the mask as a word, as published samplers do."""

    def __init__(self, inner: AbstractDenoiser) -> None:
        self.inner, self.process = inner, Absorbing(inner.process.num_words + 1)

    @property
    def lookback(self) -> int:
        return self.inner.lookback

    def predict(self, tokens: Tensor, noise: Tensor, context: ForwardContext) -> Prediction:
        answer = self.inner.predict(tokens.clamp_max(self.inner.process.mask_id), noise, context)

        def raw(at: Tensor) -> Tensor:
            return torch.nn.functional.pad(answer.raw(at), (0, 1))

        return Prediction(self.process, answer.parameterization, tokens, noise, raw)


def replayed(
    golden: Golden,
    canvases: Tensor,
    step: Step,
    noise: AbstractNoiseSchedule,
    transforms: Sequence[Transform],
) -> list[Tensor]:
    """The canvases of a generation that begins with a recorded one and may write the mask as a word."""
    frames: list[Frame] = []
    denoiser = MaskIsAlsoAWord(golden.model.denoiser)
    start = canvases[0]
    fixed = start != golden.mask
    sample(
        denoiser,
        Regime(flat(start.shape[1], len(canvases) - 1), noise, golden.model.context),
        step,
        num_sequences=len(start),
        prompt=Prompt(torch.where(fixed, start, 0), fixed),
        transforms=transforms,
        execution=Execution(together=True),
        watch=frames.append,
    )
    return [frame.after.clamp_max(golden.mask) for frame in frames]


def times_of(canvases: Tensor, noise: AbstractNoiseSchedule) -> Tensor:
    """A time for each position within the step in which it was written."""
    steps = len(canvases) - 1
    grid = noise.fraction(torch.arange(steps, -1, -1, dtype=torch.float64) / steps)
    changed = (canvases[1:] != canvases[:-1]).long()
    step = torch.where(changed.any(0), changed.argmax(0), 0)
    middle = (grid[1:] + grid[:-1]) / 2
    return middle[step] / grid[0]


def test_origin_of_dream(shared: Path) -> None:
    """Masks fall in a random order; the recorded order gives the recorded words."""
    golden = Golden.of(shared, "dream")
    canvases, steps = golden.ids("gen_origin_canvas"), golden.cases["origin"]["steps"]
    noise = dream_noise(steps)
    step = WithTimes(Ancestral(), times_of(canvases, noise))
    frames = replayed(golden, canvases, step, noise, (Temperature(0.0),))
    assert [frame.tolist() for frame in frames] == canvases[1:].tolist()


def diffugpt_canvases(golden: Golden, case: str) -> Tensor:
    """What was fed in each call, and the result with its first column."""
    fed, out = golden.ids(f"gen_{case}_canvas"), golden.ids(f"gen_{case}_out")
    return torch.cat([fed, torch.cat([fed[0, :, :1], out], 1)[None]])


@pytest.mark.parametrize("name", ["diffugpt", "diffullama"])
def test_random_order_of_diffullama(shared: Path, name: str) -> None:
    golden = Golden.of(shared, name)
    canvases = diffugpt_canvases(golden, "random_order")
    step = WithTimes(Ancestral(), times_of(canvases, LINEAR))
    frames = replayed(golden, canvases, step, LINEAR, (Temperature(0.0),))
    assert [frame.tolist() for frame in frames] == canvases[1:].tolist()


@pytest.mark.parametrize("case", ["topk", "topk_all_steps"])
@pytest.mark.parametrize("name", ["diffugpt", "diffullama"])
def test_top_k_of_diffullama(shared: Path, name: str, case: str) -> None:
    golden = Golden.of(shared, name)
    canvases = diffugpt_canvases(golden, case)
    step = ByConfidence(quota="standing", greedy=True)
    frames = replayed(golden, canvases, step, LINEAR, ())
    assert [frame.tolist() for frame in frames] == canvases[1:].tolist()


def test_no_mask_is_written_where_published_code_writes_it(shared: Path) -> None:
    golden = Golden.of(shared, "diffugpt")
    canvases = diffugpt_canvases(golden, "topk")
    assert (canvases[-1] == golden.mask).any()
    written = golden.write(
        canvases[0], ByConfidence(quota="standing", greedy=True), flat(canvases.shape[2], len(canvases) - 1)
    )
    assert (written.tokens < golden.mask).all()


@pytest.mark.parametrize("name", ["diffugpt", "diffullama"])
def test_unconditional_text_needs_a_first_token(shared: Path, name: str) -> None:
    """The published code begins with token 0, writes a word in its place, and cuts it off."""
    golden = Golden.of(shared, name)
    canvas = torch.full((1, 12), golden.mask)
    with pytest.raises(ValueError, match="begin-of-sequence"):
        golden.write(canvas, Ancestral(), flat(12, 4))
    canvas[0, 0] = golden.model.vocabulary.bos
    written = golden.write(canvas, Ancestral(), flat(12, 4))
    assert written.tokens[0, 0] == golden.model.vocabulary.bos
    assert (written.tokens < golden.mask).all()


@pytest.mark.parametrize("name", ["llada", "dream", "sdar", "fast_dllm_v2", "a2d_qwen3"])
def test_mask_is_not_written_by_a_network_that_predicts_it(shared: Path, name: str) -> None:
    """The published loops of SDAR and Fast-dLLM v2 raise an error or do not end with such weights."""
    golden = Golden.of(shared, name)
    layer = golden.model.network.output_layer or golden.model.network.vocab_embed
    with torch.no_grad():
        layer.weight[golden.mask] = layer.weight.sum(0)
    canvas = torch.full((1, 12), golden.mask)
    canvas[0, :4] = torch.arange(4)
    for step in (ByConfidence(quota="even", greedy=True), InParts(ByThreshold(0.9, greedy=True), 4)):
        assert (golden.write(canvas, step, Block(12, 8, 2)).tokens < golden.mask).all()
