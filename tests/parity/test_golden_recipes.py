"""The recipes of published conversions have the losses and the attention masks of the published code.

The corruption of a recipe gets times and draws that make the recorded noise. Arrays are described in `golden/modern`.
"""

from __future__ import annotations

import dataclasses
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hdlm
from hdlm.checkpoint import Checkpoint
from hdlm.objective import Canvas, Corruption, MaskedCrossEntropy
from hdlm.objective.masked import nearness
from hdlm.package_data import recipes
from hdlm.training import Mixture, Recipe

inspect = import_module("hdlm.hub.load").inspect


class Golden:
    """A recorded checkpoint, its arrays, and ids as ids here, where the mask is the last."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.model: Checkpoint = hdlm.load(folder, **options)
        self._row = inspect(folder, **options).blueprint.mask_row
        self._arrays = np.load(folder / "io.npz")

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self._arrays[name]))

    def ids(self, name: str) -> Tensor:
        there = self[name].long()
        if self._row is None:
            return there
        return torch.where(
            there == self._row, self.model.vocabulary.mask_id, there - (there > self._row).long()
        )


@pytest.fixture
def modern(shared: Path) -> Path:
    return shared / "golden" / "modern"


def corruption_of(name: str, golden: Golden, length: int, **changes: Any) -> tuple[Corruption, Recipe]:
    """The last stage of a recipe for sequences of a recorded length."""
    table = Recipe.load(recipes() / f"{name}.toml").to_table()
    table |= {"mixture": [table["mixture"][0] | changes], "data": table["data"] | {"context": length}}
    recipe = Recipe.from_table(table)
    process = golden.model.denoiser.process
    return Mixture.of(recipe, process).parts[0].corruption, recipe


def noised(corruption: Corruption, clean: Tensor, noisy: Tensor, t: Tensor, **options: Any) -> Canvas:
    """The canvas of a recipe with recorded noise.

    Args:
        corruption: The corruption of the recipe.
        clean: Clean tokens.
        noisy: Recorded noisy tokens.
        t: Masking probability of each of its times.
        options: Prompts, documents and attention.
    """
    least = corruption.layout.least_noise
    draw = (noisy == corruption.process.mask_id).double() * (1 - 1e-12)
    canvas = corruption(clean, 1 - (t.double() - least) / (1 - least), draw, **options)
    assert torch.equal(canvas.x_t[: len(noisy)], noisy)
    return canvas


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.detach().double(), theirs.double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("name", "options"), [("diffugpt", {}), ("diffullama", {"mask_id": 11})])
@pytest.mark.parametrize("step", [0, 4999, 20000])
def test_loss_of_diffugpt(modern: Path, name: str, options: dict[str, Any], step: int) -> None:
    golden = Golden(modern / name, **options)
    clean, given = golden.ids("loss_ids"), golden["loss_src_mask"].bool()
    corruption, recipe = corruption_of("diffugpt", golden, clean.shape[1])
    # The published code may mask the first token, which it never predicts; here a shifted network is given it.
    corruption = dataclasses.replace(corruption, num_given=0)
    t, noisy = golden["loss_t"][:, None], golden.ids(f"loss_step{step}_noisy")
    canvas = noised(corruption, clean, noisy, t, given=given)
    allow = golden[f"loss_step{step}_allow"]
    canvas = dataclasses.replace(canvas, attention=allow[None])
    close(recipe.build_objective().mean(golden.model.denoiser, canvas), golden[f"loss_step{step}"])
    words = dataclasses.replace(recipe.build_objective(), every_row=False)  # the mask has no probability
    assert words.mean(golden.model.denoiser, canvas) < golden[f"loss_step{step}"]
    assert recipe.build_parameterization() == golden.model.denoiser.parameterization


@pytest.mark.parametrize("padding_is_visible", [True, False])
def test_loss_of_dream(modern: Path, padding_is_visible: bool) -> None:
    """The published weights count padding as visible text (a fault of theirs); here it belongs to no document."""
    golden = Golden(modern / "dream")
    clean, noisy = golden.ids("loss_ids"), golden.ids("loss_noisy")
    given, padding = golden["loss_labels"] == -100, golden["loss_attention_mask"] == 0
    corruption, recipe = corruption_of("dream", golden, clean.shape[1])
    t = golden["loss_t"][:, None]
    canvas = noised(corruption, clean, noisy, t, given=given, documents=padding.long())
    weights = nearness(canvas.x_t != golden.model.vocabulary.mask_id, canvas.documents, 0.3)
    published = golden["loss_cart_weights"].double()
    masked = published > 0
    touched = masked & padding.any(1, keepdim=True)
    torch.testing.assert_close(weights[masked & ~touched], published[masked & ~touched], rtol=1e-5, atol=1e-6)
    assert (weights[touched] < published[touched]).all()
    objective = recipe.build_objective()
    assert isinstance(objective, MaskedCrossEntropy)
    loss = objective.mean(golden.model.denoiser, canvas)
    if not padding_is_visible:
        assert loss < golden["loss_cart_token"]
        return
    canvas = dataclasses.replace(canvas, documents=None)
    for divisor, name in (("tokens", "token"), ("sequences", "sequence")):
        measured = dataclasses.replace(objective, divisor=divisor)
        close(measured.mean(golden.model.denoiser, canvas), golden[f"loss_cart_{name}"])
    inverse = dataclasses.replace(objective, weight="inverse")
    close(inverse.mean(golden.model.denoiser, canvas), golden["loss_inverse_t_token"])


def samples_of(golden: Golden, case: str, width: int) -> dict[str, Tensor]:
    """Samples of a recorded pack, each in a row of its own that is padded to whole blocks."""
    labels, positions = golden[f"train_{case}_labels"], golden[f"train_{case}_positions"]
    clean, masked = golden.ids(f"train_{case}_ids"), golden[f"train_{case}_masked"]
    rows: list[tuple[int, int, int]] = []
    for row in range(len(clean)):
        starts = [int(at) for at in (positions[row] == 0).nonzero()[:, 0]]
        ends = [*starts[1:], clean.shape[1]]
        rows += [(row, a, b) for a, b in zip(starts, ends, strict=True) if b - a > 1]
    length = -(-max(b - a for _, a, b in rows) // width) * width

    def padded(values: Tensor, fill: int) -> Tensor:
        return torch.stack(
            [torch.nn.functional.pad(values[r, a:b], (0, length - b + a), value=fill) for r, a, b in rows]
        )

    filled = torch.stack([torch.arange(length) >= b - a for _, a, b in rows])
    hidden = padded(masked.long(), 0).bool()
    clean = padded(clean, 0)
    return {
        "clean": clean,
        "noisy": torch.where(hidden, golden.model.vocabulary.mask_id, clean),
        "given": padded(labels.long(), -100) == -100,
        "documents": filled.long(),
    }


@pytest.mark.parametrize("case", ["packed", "padded", "batch"])
def test_loss_of_sdar(modern: Path, case: str) -> None:
    golden = Golden(modern / "sdar")
    rows = samples_of(golden, case, 4)
    corruption, recipe = corruption_of("sdar", golden, rows["clean"].shape[1])
    masks = (rows["noisy"] == golden.model.vocabulary.mask_id).sum(1)
    firsts = masks.cumsum(0) - masks  # `p_mask` has a number for each mask
    t = golden[f"train_{case}_p_mask"][firsts][:, None]
    assert corruption.num_times == 1
    canvas = noised(
        corruption, rows["clean"], rows["noisy"], t, given=rows["given"], documents=rows["documents"]
    )
    close(recipe.build_objective().mean(golden.model.denoiser, canvas), golden[f"train_{case}_loss"])
    assert recipe.build_parameterization() == golden.model.denoiser.parameterization


def test_loss_of_fast_dllm_v2(modern: Path) -> None:
    golden = Golden(modern / "fast_dllm_v2")
    clean, given = golden.ids("train_ids"), golden["train_labels"] == -100
    length = clean.shape[1]
    corruption, recipe = corruption_of("fast_dllm_v2", golden, length)
    streams = golden.ids("train_stream_ids")
    t = 1e-3 + (1 - 1e-3) * golden["train_t"].double().view(len(clean), -1)
    canvas = noised(corruption, clean, streams[: len(clean), :length], t, given=given)
    # Position 0 has no label, so it is given; the complement is that of the published code.
    assert torch.equal(canvas.x_t, streams[:, :length])
    turned = canvas.attention.roll((length, length), (1, 2))  # theirs is noisy | clean
    assert torch.equal(turned[0], golden["train_allow"])
    close(recipe.build_objective().mean(golden.model.denoiser, canvas), golden["train_loss"])
    settled, _ = corruption_of("fast_dllm_v2", golden, length, border="settled")
    as_in_generation = noised(settled, clean, streams[: len(clean), :length], t, given=given)
    losses = recipe.build_objective()
    first = torch.arange(length) % 32 == 0
    with torch.no_grad():
        differ = losses(golden.model.denoiser, canvas) != losses(golden.model.denoiser, as_in_generation)
    assert differ.any()
    assert not differ[:, ~first].any()


@pytest.mark.parametrize("name", ["a2d_qwen3", "a2d_llama"])
def test_losses_of_dllm(modern: Path, name: str) -> None:
    """On one canvas with padding that is not attended to, and in two streams."""
    golden = Golden(modern / name)
    clean, labels = golden.ids("loss_ids"), golden["loss_labels"]
    corruption, _ = corruption_of("dream", golden, clean.shape[1], least_noise=0.0)
    corruption = dataclasses.replace(corruption, num_given=0)
    canvas = noised(
        corruption,
        clean,
        golden.ids("loss_mdlm_noisy"),
        golden["loss_t"][:, None],
        given=labels == -100,
        documents=1 - golden["loss_attention_mask"].long(),
    )
    for divisor, end in (("tokens", "token"), ("sequences", "sequence")):
        loss = MaskedCrossEntropy("inverse", divisor, every_row=True)  # type: ignore[arg-type]
        close(loss.mean(golden.model.denoiser, canvas), golden[f"loss_mdlm_{end}"])
    clean, length = golden.ids("bd3_loss_ids"), golden["bd3_loss_ids"].shape[1]
    corruption, recipe = corruption_of("sdar", golden, length, least_noise=0.0)
    noisy = golden.ids("bd3_loss_stream_ids")[:, :length]
    given = golden["bd3_loss_labels"] == -100
    canvas = noised(corruption, clean, noisy, golden["bd3_loss_t"][:, None], given=given)
    assert torch.equal(canvas.attention.roll((length, length), (1, 2))[0], golden["bd3_loss_allow"])
    close(recipe.build_objective().mean(golden.model.denoiser, canvas), golden["loss_bd3_token"])


@torch.no_grad()
def test_loss_of_llada(modern: Path) -> None:
    golden = Golden(modern / "llada")
    clean = golden.ids("loss_ids")
    corruption, _ = corruption_of("dream", golden, clean.shape[1])
    corruption = dataclasses.replace(corruption, num_given=0)
    t = golden["loss_p_mask"].reshape(len(clean), -1)[:, :1]
    canvas = noised(corruption, clean, golden.ids("loss_noisy"), t)
    loss = MaskedCrossEntropy("inverse", "positions", every_row=True).mean(golden.model.denoiser, canvas)
    close(loss, golden["loss_pretrain"])
    given = torch.arange(clean.shape[1]) < golden["sft_prompt_lengths"].long()[:, None]
    t = golden["sft_p_mask"].reshape(len(clean), -1)[:, :1]
    canvas = noised(corruption, clean, golden.ids("sft_noisy"), t, given=given)
    loss = MaskedCrossEntropy("inverse", "sequences", every_row=True).mean(golden.model.denoiser, canvas)
    close(loss, golden["sft_loss"])


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "width"), [("nbdiff", 1), ("nbdiff", 4), ("idlm", 1), ("idlm", 2), ("idlm", 3)]
)
def test_losses_without_published_code_are_those_of_plain_loops(modern: Path, name: str, width: int) -> None:
    """No code of NBDiff and I-DLM was at hand: the loops are our own reading of the formulas in the papers."""
    golden = Golden(modern / "causal" / "qwen3")
    clean = golden["ids"].long()[:2, :12]
    blocks = {"type": "Block", "width": width, "num_levels": 1 if name == "idlm" else width}
    corruption, recipe = corruption_of(name, golden, 12, begins=0.0, hyperschedule=blocks)
    denoiser = dataclasses.replace(golden.model).denoiser
    denoiser.parameterization = recipe.build_parameterization()
    times = torch.linspace(0.1, 0.8, 2 * corruption.num_times).view(2, -1).double()
    draw = torch.rand(2, 12, generator=torch.Generator().manual_seed(0)).double()
    canvas = corruption(clean, times, draw)
    assert name == "nbdiff" or bool((canvas.x_t[:, 1:] == denoiser.process.mask_id).all())
    weights = {"nbdiff": (1.0, 0.5), "idlm": (1.0, 0.2)}[name]
    expected = weights[0] * _noisy_term(name, width, denoiser, clean, canvas)
    expected += weights[1] * _next_token_term(name, denoiser, clean)
    total = recipe.build_objective().mean(denoiser, canvas)
    torch.testing.assert_close(total, expected.to(total.dtype), rtol=1e-5, atol=0)


def _logits(name: str, denoiser: Any, tokens: Tensor, seen: Tensor) -> Tensor:
    """The outputs for one sequence; I-DLM normalises over the row of the mask as well."""
    logits: Tensor = denoiser.backbone(tokens[None], attention=seen[None])[0]
    return (logits if name == "idlm" else logits[:, :-1]).log_softmax(-1)


def _next_token_term(name: str, denoiser: Any, clean: Tensor) -> Tensor:
    """The mean cross-entropy of the next token, word by word."""
    total, count = torch.zeros(()), 0
    for row in clean:
        for place in range(1, len(row)):
            before = row[:place]
            causal = torch.ones(place, place, dtype=torch.bool).tril()
            total = total - _logits(name, denoiser, before, causal)[-1, row[place]]
            count += 1
    return total / count


def _noisy_term(name: str, width: int, denoiser: Any, clean: Tensor, canvas: Canvas) -> Tensor:
    """Block by block on canvases of their own: the clean tokens before a block, then its noisy ones.

    NBDiff: weight 1/t, attention in both directions in a block, aligned outputs, mean over all tokens. I-DLM: equal
    weights, causal attention, the output before a token predicts it, mean over the masked tokens that are predicted.
    """
    total, count = torch.zeros(()), 0
    for row in range(len(clean)):
        for first in range(0, clean.shape[1], width):
            end = first + width
            tokens = torch.cat([clean[row, :first], canvas.x_t[row, first:end]])
            seen = torch.ones(end, end, dtype=torch.bool).tril()
            if name == "nbdiff":
                seen[first:, first:] = True
            log_p = _logits(name, denoiser, tokens, seen)
            for place in range(first, end):
                is_masked = int(tokens[place]) == denoiser.process.mask_id
                if name == "nbdiff":
                    count += 1
                    weight = is_masked / float(canvas.t[row, place])
                    total = total - weight * log_p[place, clean[row, place]]
                elif place > 0:
                    count += is_masked
                    total = total - is_masked * log_p[place - 1, clean[row, place]]
    return total / count
