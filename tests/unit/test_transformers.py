"""Models in `transformers` 4.57 and 5.x: saving, loading, forward passes and `generate`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="the extra `hub` brings it")
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer
from transformers.utils import logging

from hdlm.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from hdlm.denoiser import ForwardContext
from hdlm.generation import Settings, complete, planned
from hdlm.hyperschedule import Block
from hdlm.integrations.transformers import DenoisingOutput, HDLMConfig, HDLMForDiffusionLM
from hdlm.parameterization import LogScore, Mean, Shifted
from hdlm.process import EpsilonHybrid, GammaHybrid
from hdlm.sampling import Prompt
from hdlm.sharing.push import save_pretrained
from hdlm.vocabulary import Vocabulary
from tests.tiny import tiny_denoiser

WORDS, LENGTH = 11, 12
MASK = WORDS


def _checkpoint(family: str = "epsilon") -> Checkpoint:
    process, reading = {
        "epsilon": (EpsilonHybrid(WORDS, 0.1), Mean()),
        "shifted": (EpsilonHybrid(WORDS, 0.1), Shifted(Mean())),
        "gamma": (GammaHybrid(WORDS, 0.1), LogScore(blend_rate=0.1)),
    }[family]
    denoiser = tiny_denoiser(process, reading, conditioned=family == "gamma").float()
    shape = dataclasses.replace(denoiser.backbone.config, max_length=LENGTH)
    denoiser.backbone.config = shape
    trained = (Block(LENGTH, 4, 2), Block(LENGTH, LENGTH, 3))
    return Checkpoint(
        denoiser, Vocabulary(WORDS, bos=0, eos=0), hyperschedules=trained, training={"note": "tiny"}
    )


@pytest.fixture(autouse=True)
def no_progress_bar():
    """Disable the progress bars of the library."""
    logging.disable_progress_bar()


@pytest.fixture
def noisy_tokens() -> torch.Tensor:
    tokens = torch.randint(0, WORDS, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    return torch.where(torch.rand(3, LENGTH, generator=torch.Generator().manual_seed(1)) < 0.4, MASK, tokens)


def _noise(noisy_tokens: torch.Tensor) -> torch.Tensor:
    return torch.where(noisy_tokens == MASK, 0.7, 0.0)


@pytest.mark.parametrize("family", ["epsilon", "shifted", "gamma"])
def test_save_pretrained_round_trip_keeps_logits(
    tmp_path: Path, noisy_tokens: torch.Tensor, family: str
) -> None:
    ours = _checkpoint(family)
    HDLMForDiffusionLM.of(ours).save_pretrained(tmp_path)
    read = AutoModel.from_pretrained(tmp_path)
    assert isinstance(read, HDLMForDiffusionLM)
    assert not read.training
    assert read.checkpoint.config() == ours.config()
    logits = read(noisy_tokens, noise=_noise(noisy_tokens)).logits
    assert torch.equal(logits, ours.denoiser(noisy_tokens, _noise(noisy_tokens)))
    read.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "model.safetensors"
    ).read_bytes()


def test_load_checkpoint_reads_save_pretrained_folder(tmp_path: Path, noisy_tokens: torch.Tensor) -> None:
    ours = _checkpoint()
    HDLMForDiffusionLM.of(ours).save_pretrained(tmp_path)
    read = load_checkpoint(tmp_path)
    assert read.config() == ours.config()
    assert torch.equal(
        read.denoiser(noisy_tokens, _noise(noisy_tokens)), ours.denoiser(noisy_tokens, _noise(noisy_tokens))
    )


@pytest.mark.parametrize("writer", [save_checkpoint, lambda folder, ours: save_pretrained(ours, folder)])
@pytest.mark.parametrize("reader", [AutoModel, AutoModelForMaskedLM, HDLMForDiffusionLM])
def test_from_pretrained_reads_hdlm_checkpoint(tmp_path: Path, noisy_tokens, writer, reader) -> None:
    ours = _checkpoint()
    writer(tmp_path, ours)
    read = reader.from_pretrained(tmp_path)
    assert torch.equal(read(noisy_tokens).logits, ours.denoiser(noisy_tokens, _noise(noisy_tokens)))
    assert AutoConfig.from_pretrained(tmp_path).hyperschedules[0]["width"] == 4


def test_from_pretrained_in_bfloat16_keeps_rotary_frequencies(tmp_path: Path) -> None:
    HDLMForDiffusionLM.of(_checkpoint()).save_pretrained(tmp_path)
    read = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert read.model.blocks[0].attn_qkv.weight.dtype == torch.bfloat16
    assert torch.equal(read.model.rotary_emb.inv_freq, _checkpoint().network.rotary_emb.inv_freq.float())


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape"])
def test_from_pretrained_rejects_unfitting_weights(tmp_path: Path, fault: str) -> None:
    save_checkpoint(tmp_path, _checkpoint())
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    name = "blocks.0.attn_qkv.weight"
    if fault == "missing":
        del tensors[name]
    elif fault == "unexpected":
        name = "stowaway"
        tensors[name] = torch.zeros(2)
    else:
        tensors[name] = torch.zeros(2, 2)
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"do not fit the network of its config: .*{name}"):
        AutoModel.from_pretrained(tmp_path)


def test_model_rejects_empty_config() -> None:
    with pytest.raises(ValueError, match=r"does not describe a model, because it lacks network"):
        HDLMForDiffusionLM(HDLMConfig())


def test_model_from_config_initialises_weights() -> None:
    config = HDLMConfig.of(_checkpoint())
    torch.manual_seed(0)
    fresh = HDLMForDiffusionLM(config)
    assert fresh.model.blocks[0].attn_qkv.weight.std() > 0
    assert not fresh.model.output_layer.linear.weight.any()


def test_loss_is_the_cross_entropy_of_the_labels(noisy_tokens: torch.Tensor) -> None:
    model = HDLMForDiffusionLM.of(_checkpoint())
    labels = torch.where(noisy_tokens == MASK, 3, -100)
    output = model(noisy_tokens, labels=labels)
    assert isinstance(output, DenoisingOutput)
    expected = -output.logits[noisy_tokens == MASK][:, 3].mean()
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert model.model.blocks[0].attn_qkv.weight.grad.abs().sum() > 0
    as_tuple = model(noisy_tokens, labels=labels, return_dict=False)
    assert len(as_tuple) == 2


def test_model_accepts_padding_and_pairwise_attention_masks(noisy_tokens: torch.Tensor) -> None:
    ours = _checkpoint()
    model = HDLMForDiffusionLM.of(ours)
    padding = torch.ones(3, LENGTH, dtype=torch.long)
    padding[:, -2:] = 0
    short = model(noisy_tokens[:, :-2]).logits
    torch.testing.assert_close(model(noisy_tokens, attention_mask=padding).logits[:, :-2], short)
    causal = torch.ones(1, LENGTH, LENGTH).tril()
    expected = ours.denoiser(noisy_tokens, _noise(noisy_tokens), ForwardContext(None, causal.bool()))
    assert torch.equal(model(noisy_tokens, attention_mask=causal).logits, expected)
    with pytest.raises(ValueError, match=r"attention_mask.*got \[3, 5\]"):
        model(noisy_tokens, attention_mask=padding[:, :5])


def test_model_uses_position_ids(noisy_tokens: torch.Tensor) -> None:
    ours = _checkpoint()
    positions = torch.arange(LENGTH).flip(0)[None]
    answer = HDLMForDiffusionLM.of(ours)(noisy_tokens, position_ids=positions).logits
    assert torch.equal(answer, ours.denoiser(noisy_tokens, _noise(noisy_tokens), ForwardContext(positions)))


def test_model_rejects_positions_beyond_context(noisy_tokens: torch.Tensor) -> None:
    model = HDLMForDiffusionLM.of(_checkpoint())
    with pytest.raises(
        ValueError, match=r"`input_ids` has 13 positions, but the context of this model has 12"
    ):
        model(torch.zeros(1, LENGTH + 1, dtype=torch.long))
    for outside in (LENGTH, -1):
        positions = torch.arange(LENGTH)[None].clone()
        positions[0, 3] = outside
        with pytest.raises(
            ValueError, match=rf"`position_ids` holds {outside}, .* has the positions 0 to 11"
        ):
            model(noisy_tokens, position_ids=positions)


def test_model_rejects_labels_that_are_not_words(noisy_tokens: torch.Tensor) -> None:
    model = HDLMForDiffusionLM.of(_checkpoint())
    for label, what in ((MASK, "is the mask"), (MASK + 1, "is not a word"), (-1, "is not a word")):
        labels = torch.full_like(noisy_tokens, -100)
        labels[1, 2] = label
        with pytest.raises(ValueError, match=rf"`labels` holds {label}, which {what}"):
            model(noisy_tokens, labels=labels)


def test_conditioned_model_requires_noise(noisy_tokens: torch.Tensor) -> None:
    model = HDLMForDiffusionLM.of(_checkpoint("gamma"))
    with pytest.raises(ValueError, match=r"pass `noise`"):
        model(noisy_tokens)
    assert model(noisy_tokens, noise=_noise(noisy_tokens)).logits.shape == (3, LENGTH, WORDS + 1)


@pytest.mark.parametrize("family", ["epsilon", "shifted", "gamma"])
def test_generate_equals_complete(family: str) -> None:
    ours = _checkpoint(family)
    settings = Settings("acs", eta=0.3, temperature=0.8, top_k=5)
    given = Prompt.prefix([0], LENGTH)
    expected = complete(
        ours, given, planned(ours, settings, LENGTH, infilling=False), settings, num=3, seed=5
    )
    written = HDLMForDiffusionLM.of(ours).generate(
        algorithm="acs", eta=0.3, temperature=0.8, top_k=5, num_return_sequences=3, seed=5
    )
    assert torch.equal(written, expected.tokens)
    assert (written < WORDS).all()


def test_generate_keeps_prompts_with_several_return_sequences() -> None:
    model = HDLMForDiffusionLM.of(_checkpoint())
    prompts = torch.tensor([[1, 2, 3], [4, 5, 6]])
    written = model.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        max_length=10,
        num_return_sequences=2,
        width=5,
        steps=2,
    )
    assert written.shape == (4, 10)
    assert torch.equal(written[:, :3], prompts.repeat_interleave(2, 0))
    alone = model.generate(prompts[:1], max_length=10, num_return_sequences=2, width=5, steps=2)
    assert torch.equal(alone, written[:2])


def test_generate_fills_masks_and_accepts_guidance() -> None:
    model = HDLMForDiffusionLM.of(_checkpoint())
    gaps = torch.tensor([[1, MASK, 3, MASK, 5], [MASK, 2, 2, 2, 2]])
    filled = model.generate(gaps, seed=2)
    assert filled.shape == (2, 5)
    assert (filled < WORDS).all()
    assert torch.equal(filled[gaps != MASK], gaps[gaps != MASK])
    prompts = torch.tensor([[1, 2], [3, 4]])
    assert model.generate(prompts, guidance=1.0).shape == (2, LENGTH)
    assert torch.equal(model.generate(gaps, guidance=1.0)[gaps != MASK], gaps[gaps != MASK])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"num_beams": 4}, r"no option num_beams; known: algorithm, eta"),
        ({"length": 5, "max_length": 6}, r"two names of one option; got 6 and 5"),
        ({"max_length": 99}, r"between 1 and 12 positions.*got 99"),
        ({"inputs": torch.ones(1, 12, dtype=torch.long)}, r"12 tokens and the canvas 12 positions"),
        ({"num_return_sequences": 0}, r"at least 1; got 0"),
        ({"algorithm": "nonsense"}, r"Unknown algorithm 'nonsense'"),
        ({"inputs": torch.full((1, 2), 50)}, r"must be words"),
        (
            {
                "inputs": torch.ones(1, 2, dtype=torch.long),
                "attention_mask": torch.zeros(1, 2, dtype=torch.long),
            },
            r"Padded prompts",
        ),
    ],
)
def test_generate_rejects_bad_options(options, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        HDLMForDiffusionLM.of(_checkpoint()).generate(**options)


def test_save_pretrained_writes_tokenizer_for_transformers(tmp_path: Path) -> None:
    data = pytest.importorskip("hdlm.data", reason="the extra `train` brings tokenizers")
    trained = data.train_tokenizer(["some words, and some more"], 270)
    words = trained.vocabulary.num_words
    denoiser = tiny_denoiser(EpsilonHybrid(words, 0.1)).float()
    ours = Checkpoint(denoiser, trained.vocabulary, tokenizer_json=trained.to_json())
    HDLMForDiffusionLM.of(ours).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == words
    assert tokenizer.encode("more words") == trained.encode("more words")
    assert tokenizer.eos_token_id == trained.vocabulary.eos
    assert load_checkpoint(tmp_path).tokenizer_json == ours.tokenizer_json


def test_config_file_names_model_type_and_architecture(tmp_path: Path) -> None:
    HDLMForDiffusionLM.of(_checkpoint()).save_pretrained(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    assert document["model_type"] == "hdlm"
    assert document["architectures"] == ["HDLMForDiffusionLM"]
    assert document["format"] == 1
