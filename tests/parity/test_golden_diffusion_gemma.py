"""DiffusionGemma against the published code: logits, the recorded generation, losses, and the export.

The figures are those of `golden/modern/diffusion_gemma`, whose README describes conventions and faults.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import Tensor

import hdlm
from hdlm.checkpoint import Checkpoint
from hdlm.cli import main
from hdlm.data import Tokenizer
from hdlm.denoiser import AbstractDenoiser, Denoiser, ForwardContext, Prediction
from hdlm.generation import Ending, complete, planned
from hdlm.generation.company import SharedWriter, WriteRequest
from hdlm.hyperschedule import PromptedBlock
from hdlm.network import DiffusionGemma, Previous
from hdlm.objective import Canvas, CleanStream, Combination, Corruption, CrossEntropy
from hdlm.objective.canvas import next_tokens
from hdlm.parameterization import AbstractParameterization, LeaveOneOut, Mean
from hdlm.process import Uniform
from hdlm.randomness import Randomness
from hdlm.sampling import Ancestral, EntropyRenoising, Execution, Generation, Prompt, algorithm, sample
from hdlm.sampling.loop import sample_plainly
from hdlm.sampling.steps import editing
from hdlm.sharing.export import export
from hdlm.training import loop, setup
from hdlm.training.finetuning import recipe_of
from hdlm.training.recipe import Recipe

transformers = pytest.importorskip("transformers", minversion="5.23")

CLOSE: dict[str, float] = {"atol": 1e-4, "rtol": 0}
WIDTH = 8


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "golden" / "modern" / "diffusion_gemma"


@pytest.fixture(scope="module")
def model(folder: Path) -> Checkpoint:
    return hdlm.load(folder)


@pytest.fixture(scope="module")
def golden(folder: Path) -> Callable[[str], Tensor]:
    arrays = np.load(folder / "io.npz")

    def array(name: str) -> Tensor:
        value = torch.from_numpy(arrays[name])
        return value.long() if value.dtype == torch.int32 else value

    return array


@torch.no_grad()
def logits_of(model: Checkpoint, prefix: Tensor, canvas: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
    """Logits of a canvas behind a prefix, and the hidden states of the prefix."""
    network, end = model.network, prefix.shape[1]
    assert isinstance(network, DiffusionGemma)
    settled = torch.arange(end + canvas.shape[1]) < end
    hidden = network.features(torch.cat([prefix, canvas], 1), settled=settled, **given)
    return network.head(hidden[:, end:]), hidden[:, :end]


def conditioned_on(logits: Tensor, prefix: int, rows: Tensor) -> Previous:
    """The logits of the call before, for some of the sequences."""
    place = torch.full((len(logits), prefix + logits.shape[1]), -1)
    place[:, prefix:] = torch.arange(logits.shape[0] * logits.shape[1]).view(logits.shape[:2])
    return Previous(logits.flatten(0, 1), torch.where(rows[:, None], place, -1))


# --- logits ----------------------------------------------------------------------------------------------------------
def test_logits_and_encoder(model, golden):
    logits, hidden = logits_of(model, golden("ids"), golden("canvas"))
    torch.testing.assert_close(logits, golden("logits"), **CLOSE)
    torch.testing.assert_close(hidden, golden("encoder_hidden"), **CLOSE)
    short, _ = logits_of(model, golden("ids")[:, :4], golden("canvas"))
    torch.testing.assert_close(short, golden("logits_short_prefix"), **CLOSE)


@pytest.mark.parametrize(
    ("name", "rows"),
    [("logits_self_conditioned", (True, True)), ("logits_self_conditioned_row0_only", (True, False))],
)
def test_logits_with_self_conditioning(model, golden, name, rows):
    ids = golden("ids")
    previous = conditioned_on(golden("sc_logits"), ids.shape[1], torch.tensor(rows))
    logits, hidden = logits_of(model, ids, golden("canvas"), previous=previous)
    torch.testing.assert_close(logits, golden(name), **CLOSE)
    torch.testing.assert_close(hidden, golden("encoder_hidden"), **CLOSE)
    assert (logits[0] - golden("logits")[0]).abs().max() > 0.1


def test_logits_behind_padding(model, golden):
    ids, canvas = golden("pad_ids"), golden("canvas")
    size = ids.shape[1] + canvas.shape[1]
    real = torch.cat([golden("pad_attention_mask").bool(), torch.ones_like(canvas, dtype=torch.bool)], 1)
    logits, _ = logits_of(model, ids, canvas, attention=real[:, None].expand(-1, size, -1))
    torch.testing.assert_close(logits, golden("pad_logits"), **CLOSE)


def test_cached_prefix_changes_no_logit(model, golden):
    ids, canvas, network = golden("ids"), golden("canvas"), model.network
    cache, settled = network.new_cache(), torch.ones(5, dtype=torch.bool)
    with torch.no_grad():
        network.features(ids[:, :5], cache=cache, store=torch.arange(5), settled=settled)
        cache.retain(torch.tensor([0, 4, 2, 3, 1]))  # in any order
    rest, _ = logits_of(model, ids[:, 5:], canvas, cache=cache, store=torch.arange(6))
    torch.testing.assert_close(rest, golden("logits"), **CLOSE)
    assert len(cache) == ids.shape[1]
    alone, _ = logits_of(model, ids[:, :0], canvas, cache=cache)
    torch.testing.assert_close(alone, golden("logits"), **CLOSE)
    with pytest.raises(ValueError, match="settled positions only"):
        logits_of(model, ids[:, :0], canvas, cache=cache, store=torch.arange(2))


def test_denoiser_reads_which_positions_are_settled(model, golden):
    tokens = torch.cat([golden("ids"), golden("canvas")], 1)
    settled = torch.arange(tokens.shape[1]) < 11
    noise = torch.where(settled, 0.0, 0.5).expand(tokens.shape).double()
    with torch.no_grad():
        prediction = model.denoiser.predict(tokens, noise, ForwardContext())
    raw = prediction.raw(prediction.everywhere()).view(*tokens.shape, -1)
    torch.testing.assert_close(raw[:, 11:], golden("logits"), **CLOSE)
    noise[1, 10] = 0.5
    with pytest.raises(ValueError, match="same places"):
        model.denoiser.predict(tokens, noise, ForwardContext())


# --- generation ------------------------------------------------------------------------------------------------------
class Recorded:
    """The recorded generation of two canvases: draws are injected, and inputs of the network are kept."""

    def __init__(
        self, golden: Callable[[str], Tensor], folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        case = json.loads((folder / "cases.json").read_text())["generate"]
        self.ids, self.steps = golden("ids"), case["max_denoising_steps"]
        self.step = EntropyRenoising(
            case["entropy_bound"],
            self.steps,
            case["stability_threshold"],
            case["confidence_threshold"],
            hot=case["t_max"],
            cold=case["t_min"],
            greedy=True,
        )
        self.drawn, self.fresh = golden("gen_den"), golden("gen_new")
        self.log_p: list[Tensor] = []
        self._monkeypatch = monkeypatch

    def write(self, model: Checkpoint, golden: Callable[[str], Tensor], **execution: Any) -> Generation:
        """Two canvases, with the recorded noise, words and renoising."""
        start = golden("gen_cur")[:: self.steps]
        tokens = torch.cat([self.ids, start[0], start[1]], 1)
        given = (torch.arange(tokens.shape[1]) < self.ids.shape[1]).expand(tokens.shape)
        self._monkeypatch.setattr(editing, "draw_index", self._draw)
        self._monkeypatch.setattr(Uniform, "draw_prior", self._renoise)
        plan = PromptedBlock(tokens.shape[1], WIDTH, self.steps).behind(self.ids.shape[1])
        prompt = Prompt(tokens, given, is_draft=True)
        written = sample(
            model.denoiser,
            model.regime(plan),
            self.step,
            num_sequences=2,
            prompt=prompt,
            execution=Execution(**execution),
        )
        self._monkeypatch.undo()
        return written

    def _draw(self, p: Tensor, numbers: Tensor) -> Tensor:
        words = self.drawn[len(self.log_p)].flatten()
        self.log_p.append(p[:, :-1].log())
        assert (p.gather(1, words[:, None]) > 0).all()
        return words

    def _renoise(self, u: Tensor, numbers: Tensor) -> Tensor:
        """Recorded noise at the positions of the canvas; elsewhere it is not used."""
        noise = torch.zeros_like(u, dtype=torch.long)
        call = len(self.log_p) - 1
        if call >= 0:
            begin = self.ids.shape[1] + call // self.steps * WIDTH
            noise[:, begin : begin + WIDTH] = self.fresh[call]
        return noise


@pytest.mark.parametrize("together", [False, True])
def test_recorded_generation_token_by_token(model, golden, folder, monkeypatch, together):
    """The decisions follow from our logits: which words are accepted, which are likeliest, and the text."""
    recorded = Recorded(golden, folder, monkeypatch)
    fed: list[Tensor] = []
    conditioned = DiffusionGemma._conditioned

    def watched(network: DiffusionGemma, tokens: Tensor, *rest: Any) -> Tensor:
        fed.append(tokens)
        return conditioned(network, tokens, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionGemma, "_conditioned", watched)
        written = recorded.write(model, golden, together=together)
    assert torch.equal(written.tokens, golden("gen_sequences"))
    assert torch.equal(torch.cat(fed).view(-1, 2, WIDTH), golden("gen_cur"))
    processed = golden("gen_processed_logits_first_last").log_softmax(-1)
    for call, own in enumerate(recorded.log_p):
        own = own.view(2, WIDTH, -1)
        entropy = torch.special.entr(own.exp()).sum(-1)
        rounding = 1e-4 * 5 ** (call % recorded.steps)  # each call reads what the call before has rounded
        torch.testing.assert_close(entropy, golden("gen_ent")[call], atol=rounding, rtol=0)
        assert torch.equal(own.argmax(-1), golden("gen_arg")[call])
        if call in (0, len(recorded.log_p) - 1):
            torch.testing.assert_close(own, processed[min(call, 1)], atol=rounding, rtol=0)
    forward = 2 * WIDTH / written.evaluations
    padded = (golden("gen_sequences")[:, 11:] == 0).sum(1)  # published code does not count drawn padding
    torch.testing.assert_close(
        forward.float() - padded / written.evaluations, golden("gen_tokens_per_forward")
    )


def test_without_self_conditioning_the_recorded_generation_is_another(model, golden, folder, monkeypatch):
    """The comparison above would notice if the network did not get the distributions of the call before."""
    recorded = Recorded(golden, folder, monkeypatch)
    conditioned = DiffusionGemma._conditioned
    with monkeypatch.context() as patch:
        patch.setattr(
            DiffusionGemma,
            "_conditioned",
            lambda network, tokens, previous, canvas: conditioned(network, tokens, None, canvas),
        )
        written = recorded.write(model, golden)
    assert not torch.equal(written.tokens, golden("gen_sequences"))


def written_by(
    model: Checkpoint, ids: Tensor, *, num: int = 3, seed: int = 5, **execution: Any
) -> Generation:
    """Two canvases behind each prompt, by the published sampler with few calls."""
    plan = PromptedBlock(ids.shape[1] + 2 * WIDTH, WIDTH, 3).behind(ids.shape[1])
    tokens = torch.nn.functional.pad(ids, (0, 2 * WIDTH))
    given = (torch.arange(tokens.shape[1]) < ids.shape[1]).expand(tokens.shape)
    return sample(
        model.denoiser,
        model.regime(plan),
        algorithm("diffusion_gemma", model.denoiser.process, 1.0, passes=4),
        num_sequences=num,
        seed=seed,
        prompt=Prompt(tokens, given),
        execution=Execution(**execution),
    )


def test_a_sequence_depends_on_its_seed_and_index_only(model, golden):
    """Self-conditioning belongs to a sequence: neither batches nor other sequences change a token."""
    ids = golden("ids")[:1]
    together = written_by(model, ids, together=True).tokens
    for execution in ({}, {"batch_size": 1}, {"batch_size": 2}, {"use_cache": False}):
        assert torch.equal(written_by(model, ids, **execution).tokens, together), execution
    last = written_by(model, ids, num=1, first_sequence=2).tokens
    assert torch.equal(last[0], together[2])
    assert not torch.equal(written_by(model, ids, seed=6).tokens, together)
    assert len(together.unique(dim=0)) == 3


def test_engine_writes_what_the_plain_loop_writes(model, golden):
    ids = golden("ids")[:1]
    plan = PromptedBlock(ids.shape[1] + 2 * WIDTH, WIDTH, 3).behind(ids.shape[1])
    prompt = Prompt.prefix(ids[0], plan.length)
    step = algorithm("diffusion_gemma", model.denoiser.process, 1.0, passes=4)
    for own in (step, Ancestral()):
        plain = sample_plainly(
            model.denoiser, model.regime(plan), own, num_sequences=2, seed=5, prompt=prompt
        )
        written = sample(model.denoiser, model.regime(plan), own, num_sequences=2, seed=5, prompt=prompt)
        assert torch.equal(written.tokens, plain)


def test_the_prompt_is_encoded_and_canvases_begin_behind_it(model):
    """The first canvas has its whole width, wherever the prompt ends, and prompts of other lengths are refused."""
    settings = hdlm.Settings("diffusion_gemma", eta=1.0, steps=2, new_tokens=WIDTH)
    windows = []
    features = DiffusionGemma.features

    def watched(network: DiffusionGemma, tokens: Tensor, **given: Any) -> Tensor:
        windows.append(given["settled"].tolist())
        return features(network, tokens, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionGemma, "features", watched)
        (passage,) = hdlm.write(model, "The king", settings, seed=2)
    assert len(passage.tokens) == passage.given + WIDTH
    assert windows == [[True] * passage.given + [False] * WIDTH, [False] * WIDTH]
    regime = planned(model, settings, passage.given + WIDTH, infilling=False, given=passage.given)
    longer = Prompt.prefix([*passage.tokens[: passage.given], 9], regime.length)
    with pytest.raises(ValueError, match="prompts of one length"):
        complete(model, longer, regime, settings)


def test_text_ends_at_the_token_that_ends_texts(model):
    """Published code turns what follows into padding; here the passage ends."""
    eos = model.vocabulary.eos
    settings = hdlm.Settings("diffusion_gemma", eta=1.0, steps=1, new_tokens=4 * WIDTH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(editing, "draw_index", lambda p, u: torch.full((len(p),), 9))
        patch.setattr(torch.Tensor, "argmax", lambda p, *_: torch.full((len(p),), eos))
        (passage,) = hdlm.write(model, "The king", settings, ending=Ending(at_end_of_text=True))
    assert passage.tokens[passage.given :] == (eos,)
    assert passage.evaluations == 1


# --- loading ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("there", [None, ModuleType("transformers")])
def test_missing_or_old_transformers_is_an_error_that_says_what_to_install(folder, monkeypatch, there):
    monkeypatch.setitem(sys.modules, "transformers", there)
    with pytest.raises(ValueError, match=r"diffusion_gemma.*5\.23 or newer.*pip install 'hdlm\[gemma\]'"):
        hdlm.load(folder)


def test_saved_checkpoint_is_read_again(model, golden, tmp_path):
    model.save(tmp_path)
    again = hdlm.load(tmp_path)
    assert again.network.config == model.network.config
    assert again.config() == model.config()
    logits, _ = logits_of(again, golden("ids"), golden("canvas"))
    assert torch.equal(logits, logits_of(model, golden("ids"), golden("canvas"))[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tie_word_embeddings": False}, "tied"),
        ({"text_config": {}}, "text_config.vocab_size"),
        ({"text_config": {"num_experts": None}}, "transformers refuses the config"),
        ({"text_config": {"hidden_activation": "x"}}, "transformers refuses the config: 'x'"),
        ({"text_config": {"sliding_window": 0}}, r"text_config\.sliding_window"),
        ({"text_config": {"final_logit_softcapping": None}}, r"text_config\.final_logit_softcapping"),
        ({"text_config": {"top_k_experts": 5}}, r"text_config\.top_k_experts.*\[1, 4\]"),
        ({"vision_config": 3}, "transformers refuses the config"),
        ({"canvas_length": 0}, "canvas_length"),
    ],
)
def test_configs_that_cannot_be_read_are_refused(folder, tmp_path, change, message):
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    if text := change.get("text_config"):
        change = {"text_config": config["text_config"] | text}
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        hdlm.load(tmp_path)


def test_export_is_read_by_the_published_class(model, folder, golden, tmp_path):
    export(model, tmp_path)
    published, report = transformers.DiffusionGemmaForBlockDiffusion.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    with torch.no_grad():
        logits = published(input_ids=golden("ids"), decoder_input_ids=golden("canvas")).logits
    torch.testing.assert_close(logits, golden("logits"), **CLOSE)
    before, after = (load_file(where / "model.safetensors") for where in (folder, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = hdlm.load(tmp_path)
    assert again.config() == model.config()
    assert again.tokenizer.encode("the king") == model.tokenizer.encode("the king")
    tokens = [Tokenizer.load(where / "tokenizer.json").vocabulary for where in (folder, tmp_path)]
    assert tokens[0] == tokens[1]  # without the words that stand for spare rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_each_precision_are_those_of_the_published_class(folder, golden, dtype):
    """In bfloat16 the rows of these experts have 24 bytes, which is no multiple of 16: the fast kernel refuses them."""
    own = hdlm.load(folder, dtype=dtype)
    logits, _ = logits_of(own, golden("ids"), golden("canvas"))
    published = transformers.DiffusionGemmaForBlockDiffusion.from_pretrained(
        folder, dtype=dtype, experts_implementation="eager"
    )
    with torch.no_grad():
        expected = published(input_ids=golden("ids"), decoder_input_ids=golden("canvas")).logits
    rounding = 20 * torch.finfo(dtype).eps * 10  # logits reach 10
    torch.testing.assert_close(logits, expected.float(), atol=rounding, rtol=0)
    assert bool((golden("logits") - logits).abs().max() < 3 * rounding)


# --- losses and training ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, Tensor]:
    arrays = np.load(folder / "train.npz")
    values = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return {name: value.long() if value.dtype == torch.int32 else value for name, value in values.items()}


@dataclass(frozen=True)
class Fixed(AbstractDenoiser):
    """A denoiser with recorded logits."""

    process: Uniform
    meaning: AbstractParameterization
    logits: Tensor

    def predict(self, tokens: Tensor, noise: Tensor, context: ForwardContext) -> Prediction:
        return Prediction(self.process, self.meaning, tokens, noise, lambda at: self.logits.flatten(0, 1)[at])


@pytest.mark.parametrize(("name", "meaning"), [("loss_mean", Mean()), ("loss_mean_loo", LeaveOneOut())])
def test_published_losses(model, trained, name, meaning):
    """The mean cross-entropy of all positions of the canvas, and the loss of the causal encoder."""
    flat_loss, process = CrossEntropy(worst=torch.inf), Uniform(320)
    noise = trained["t"].double()[:, None].expand(3, WIDTH)
    ones = torch.ones_like(noise)
    canvas = Canvas(trained["canvas_target"], trained["canvas"], noise, noise * 0, ones, ones)
    diffusion = flat_loss.mean(Fixed(process, meaning, trained["logits"]), canvas)
    padded = trained["attention_mask"] == 0
    pairs = next_tokens(trained["ids"], given=padded)
    with torch.no_grad():
        causal = flat_loss(Denoiser(model.network, process, Mean()), pairs)
    autoregressive = causal.sum() / (~padded[:, 1:]).sum()
    torch.testing.assert_close(autoregressive.float(), trained["loss_autoregressive"], rtol=1e-5, atol=0)
    torch.testing.assert_close((diffusion + autoregressive).float(), trained[name], rtol=1e-5, atol=0)


def test_a_canvas_is_trained_behind_the_prefix_that_generation_gives_it(model, folder, trained):
    """The fault of the published recipe: behind text longer than the window, the prefix is missing from its cache."""
    published = transformers.DiffusionGemmaForBlockDiffusion.from_pretrained(folder)
    for row, end in enumerate(trained["prefix_length"].tolist()):
        prefix, canvas = trained["ids"][row : row + 1, :end], trained["canvas"][row : row + 1]
        logits, _ = logits_of(model, prefix, canvas)
        with torch.no_grad():
            right = published(input_ids=prefix, decoder_input_ids=canvas).logits
        torch.testing.assert_close(logits, right, **CLOSE)
        assert (logits - trained["logits"][row : row + 1]).abs().max() > 1  # the fault


def two_streams(model: Checkpoint, ids: Tensor) -> Canvas:
    """Three canvases and the clean text before each, in one pass."""
    plan = PromptedBlock(ids.shape[1], WIDTH, 4)
    corruption = Corruption(model.denoiser.process, model.regime(plan))
    times = torch.tensor([[0.3, 0.6, 0.9], [0.8, 0.1, 0.5]], dtype=torch.float64)
    draw = Randomness(3).uniform(torch.arange(2)[:, None], 0, torch.arange(ids.shape[1])[None])
    return corruption(ids, times, draw)


def test_two_streams_have_the_logits_of_generation(model, trained):
    ids = trained["ids"][[0, 2], : 3 * WIDTH]
    canvas = two_streams(model, ids)
    with torch.no_grad():
        prediction = canvas.predict(model.denoiser)
    raw = prediction.raw(prediction.everywhere()).view(*ids.shape, -1)
    conditioned = replace(canvas, conditioned=torch.tensor([True, False]))
    with torch.no_grad():
        prediction = conditioned.predict(model.denoiser)
    again = prediction.raw(prediction.everywhere()).view(*ids.shape, -1)
    for begin in range(0, 3 * WIDTH, WIDTH):
        here = slice(begin, begin + WIDTH)
        logits, _ = logits_of(model, ids[:, :begin], canvas.x_t[:, here])
        torch.testing.assert_close(raw[:, here], logits, **CLOSE)
        previous = conditioned_on(logits, begin, torch.tensor([True, False]))
        logits, _ = logits_of(model, ids[:, :begin], canvas.x_t[:, here], previous=previous)
        torch.testing.assert_close(again[:, here], logits, atol=1e-3, rtol=0)
    assert (raw[0] - again[0]).abs().max() > 0.1


def test_gradients_reach_every_weight_of_the_text_model(folder, trained):
    model = hdlm.load(folder)
    canvas = two_streams(model, trained["ids"][[0, 2], : 3 * WIDTH])
    objective = Combination(((1.0, CrossEntropy(worst=torch.inf)), (1.0, CleanStream("tokens"))))
    objective.mean(model.denoiser, replace(canvas, conditioned=torch.tensor([True, False]))).backward()
    still = {
        name
        for name, weight in model.network.named_parameters()
        if weight.grad is None or not weight.grad.any()
    }
    frozen = {name for name, weight in model.network.named_parameters() if not weight.requires_grad}
    assert still == frozen
    assert all(name.startswith(("vision", "embed_vision")) or "scalar" in name for name in frozen)


@pytest.mark.slow
def test_training_goes_on_from_the_checkpoint_and_is_exported(folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"The king said to the queen number {n} that he would go.\n" for n in range(99)))
    small = {"data": {"context": 24}, "run": {"batch_size": 2}}
    made = hdlm.finetune(
        folder, str(text), output=tmp_path / "run", steps=2, recipe=small, progress=False, device="cpu"
    )
    before = hdlm.load(folder)
    moved_on = {
        name
        for (name, old), new in zip(before.network.named_parameters(), made.network.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert {
        "vocab_embed.weight",
        "self_conditioning.up_proj.weight",
        "blocks.0.experts.down_proj",
    } <= moved_on
    assert not any("vision" in name or "scalar" in name for name in moved_on)
    assert made.hyperschedules == (PromptedBlock(24, WIDTH, 48),)
    export(made, tmp_path / "export")
    again = hdlm.load(tmp_path / "export")
    assert torch.equal(again.network.vocab_embed.weight, made.network.vocab_embed.weight)


def test_training_with_fsdp_is_refused(folder, tmp_path, monkeypatch):
    """FSDP would set the factors of the encoder in both stacks: the loss differed without an error."""
    monkeypatch.setattr(
        loop, "make_engine", lambda *_: SimpleNamespace(distributed_type=DistributedType.FSDP)
    )
    small = {"data": {"context": 24}, "run": {"batch_size": 2}}
    text = ["The king said to the queen that he would go.\n" * 40]
    with pytest.raises(ValueError, match="DiffusionGemma cannot be trained with FSDP"):
        hdlm.finetune(folder, text, output=tmp_path, steps=1, recipe=small, progress=False, device="cpu")


def test_training_with_fsdp_is_refused_before_text_is_read(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(setup, "read_training_text", lambda *_: pytest.fail("the text was read"))
    table = recipe_of(hdlm.load(folder)) | {"run": {"batch_size": 2, "steps": 1}}
    with pytest.raises(ValueError, match="DiffusionGemma cannot be trained with FSDP"):
        setup.build_setup(Recipe.from_table(table), torch.device("cuda"))


def test_likelihood_is_that_of_the_model_without_self_conditioning(model, tmp_path, monkeypatch):
    """It is a bound on the text that ancestral steps write, which do not hand distributions on."""
    (tmp_path / "text.txt").write_text("The king said to the queen that he would go.\n")
    asked = []
    conditioned = DiffusionGemma._conditioned

    def watched(network: DiffusionGemma, tokens: Tensor, previous: Any, canvas: Tensor) -> Tensor:
        asked.append(previous)
        return conditioned(network, tokens, previous, canvas)

    monkeypatch.setattr(DiffusionGemma, "_conditioned", watched)
    result = model.likelihood(tmp_path / "text.txt", length=16, replicates=2, progress=False)
    assert result.bits_per_byte > 0
    assert asked
    assert set(asked) == {None}


# --- the command line ------------------------------------------------------------------------------------------------
def test_command_line_describes_and_samples(folder, capsys):
    assert main(["info", str(folder), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["format"] == "DiffusionGemma"
    assert described["hyperschedules"][0]["type"] == "PromptedBlock"
    command = ["sample", str(folder), "--prompt", "The king", "--new-tokens", "8", "--json"]
    assert main([*command, "--algorithm", "diffusion_gemma", "--max-denoising-steps", "3"]) == 0
    (passage,) = json.loads(capsys.readouterr().out)["passages"]
    assert passage["num_evaluations"] == 3
    assert main([*command, "--compile"]) == 2
    assert "neither compiled" in capsys.readouterr().err


def test_requests_of_a_server_get_what_they_get_alone(model):
    """Prompts of other lengths have canvases at other places, so they are written by engines of their own."""
    settings = hdlm.Settings("diffusion_gemma", eta=1.0, steps=3, new_tokens=WIDTH)
    requests = [
        WriteRequest(model, prompt, settings, seed=seed) for seed, prompt in enumerate(("He", "The king"))
    ]
    writer, written = SharedWriter(2), {}
    for request in requests:
        writer.add(request)
    while writer.num_running or writer.num_waiting:
        written |= {done.request.seed: done.passage for done in writer.advance()}
    for request in requests:
        (alone,) = hdlm.write(model, request.prompt, settings, seed=request.seed)
        assert written[request.seed].tokens == alone.tokens


def test_given_words_of_a_text_with_gaps_are_part_of_the_canvas(model):
    settings = hdlm.Settings("diffusion_gemma", eta=1.0, steps=3)
    (passage,) = hdlm.write(model, "The [MASK:3] king", settings)
    given, free = passage.tokens[:3], passage.tokens[3:6]
    assert model.tokenizer.decode(given[1:]) == "The"
    assert len(free) == 3
    assert passage.evaluations == 3
