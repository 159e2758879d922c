"""Generative perplexity under a tiny causal language model."""

from __future__ import annotations

import math
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hdlm.checkpoint import load_checkpoint
from hdlm.evaluation.generation.judge import (
    AbstractJudge,
    Judgement,
    TransformersJudge,
    generative_perplexity,
)
from hdlm.evaluation.generation.judges import judges_of
from hdlm.evaluation.records.protocol import weights_sha256
from hdlm.package_data import pretrained
from tests import gpt2


class FixedJudge(AbstractJudge):
    name = "fixed"

    def __init__(self, **judgements):
        self.judgements = judgements

    def judge(self, texts):
        return [self.judgements[text] for text in texts]


def test_generative_perplexity_over_tokens_and_over_samples():
    found = generative_perplexity(FixedJudge(a=Judgement(4.0, 2), b=Judgement(6.0, 8)), ["a", "b"])
    assert found["generative perplexity"].value == pytest.approx(math.exp(1.0))
    assert found["generative perplexity, mean over samples"].value == pytest.approx(
        (math.exp(2) + math.exp(0.75)) / 2
    )


def test_generative_perplexity_error_for_samples_of_equal_length():
    found = generative_perplexity(
        FixedJudge(a=Judgement(2.0, 2), b=Judgement(2.2, 2), c=Judgement(1.8, 2)), list("abc")
    )
    spread = math.exp(1.0) * 0.1 / math.sqrt(3)
    assert found["generative perplexity"].error == pytest.approx(spread, rel=0.01)


def test_generative_perplexity_rejects_empty_samples():
    with pytest.raises(ValueError, match="no samples"):
        generative_perplexity(FixedJudge(), [])
    with pytest.raises(ValueError, match="sample 1 has no token"):
        generative_perplexity(FixedJudge(a=Judgement(1.0, 1), b=Judgement(0.0, 0)), ["a", "b"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50257, n_positions=32, n_embd=8, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    for name, content in gpt2.hub_files().items():
        if name != "config.json":
            (folder / name).write_bytes(content)
    return folder


def test_transformers_judge_equals_loss_of_transformers(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = ["In the beginning", "And God said, Let there be light: and there was light.", "x"]
    found = TransformersJudge(str(folder), batch_size=2).judge(texts)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    for text, judgement in zip(texts, found, strict=True):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            loss = model(ids, labels=ids).loss
        assert judgement.num_tokens == ids.shape[1] - 1
        assert judgement.nats == pytest.approx(float(loss) * judgement.num_tokens, rel=1e-5)


def test_transformers_judge_counts_each_token_of_long_text_once(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = "In the beginning God created the heaven and the earth, and the earth was without form. " * 4
    (found,) = TransformersJudge(str(folder), batch_size=2).judge([text])
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    ids = torch.tensor([tokenizer.bos_token_id, *tokenizer(text, verbose=False)["input_ids"]])
    assert len(ids) > 64
    assert found.num_tokens == len(ids) - 1
    nats = 0.0
    for at in range(1, len(ids)):
        block = max(0, -(-(at + 1 - 32) // 16))  # of 16 new tokens, behind the first window of 32
        end = min(32 + 16 * block, len(ids))
        start = max(0, end - 32)
        with torch.no_grad():
            nats -= float(model(ids[None, start:at]).logits[0, -1].log_softmax(-1)[ids[at]])
    assert found.nats == pytest.approx(nats, rel=1e-5)


def test_judge_protocol_holds_hash_of_weights(folder):
    from transformers import AutoModelForCausalLM

    ours = "kjv-epsilon-4m"
    found = judges_of([str(folder), ours], torch.device("cpu"))
    networks = AutoModelForCausalLM.from_pretrained(folder), load_checkpoint(pretrained() / ours).network
    for (word, judge), network in zip(found.items(), networks, strict=True):
        assert judge.protocol_fields == {"judge": word, "judge_sha256": weights_sha256(network)}


def _truncate_weights(weights):
    weights.write_bytes(weights.read_bytes()[:-100])


def _drop_weights(weights):
    save_file({name: one for name, one in load_file(weights).items() if "mlp" not in name}, weights, PT)


def _change_weight_shapes(weights):
    save_file(
        {name: one[:1] if "mlp" in name else one for name, one in load_file(weights).items()}, weights, PT
    )


PT = {"format": "pt"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate_weights, "are damaged"),
        (_drop_weights, r"lacks 4 of its weights, .*mlp"),
        (_change_weight_shapes, "of another model"),
    ],
)
def test_judge_with_damaged_weights_is_refused(folder, tmp_path, damage, message):
    """`transformers` would fill missing weights with random numbers."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "model.safetensors")
    (found,) = judges_of([str(tmp_path)], torch.device("cpu")).values()
    assert isinstance(found, str)
    assert re.search(message, found)


def test_bidirectional_judge_is_refused(folder, tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(vocab_size=50257, initializer_range=1.0, **small)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    (found,) = judges_of([str(tmp_path)], torch.device("cpu")).values()
    assert "attends to later tokens" in found


def test_unavailable_judge_raises(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="cannot be loaded"):
        TransformersJudge("nobody/nothing")


@pytest.mark.parametrize("word", ["/nonexistent", "./judge", "a/b/c", "../gpt2", "runs/judge.safetensors"])
def test_missing_judge_path_does_not_query_hub(monkeypatch, word):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: pytest.fail("the hub was asked"))
    (found,) = judges_of([word], torch.device("cpu")).values()
    assert "there is no such file or folder" in found


def test_judges_of_offline_does_not_query_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: pytest.fail("the hub was asked"))
    (found,) = judges_of(["nobody/nothing"], torch.device("cpu"), offline=True).values()
    assert "--offline" in found
