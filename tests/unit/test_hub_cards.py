"""Cards of the peer formats: how they are recognised, and what the sizes imply for the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from hdlm.hub import CARDS, AbstractCard, Blueprint, Evidence
from hdlm.hyperschedule import Block, flat
from hdlm.network import DDiTConfig
from hdlm.noise_schedule import LINEAR, Geometric, LogLinear
from hdlm.parameterization import LeaveOneOut, LogScore
from hdlm.process import GIDD, Absorbing, Uniform
from hdlm.vocabulary import GPT2, Vocabulary

TRANSFORMERS = {
    "architectures": ["Model"],
    "auto_map": {"AutoConfig": "org/name--configuration.Config"},
    "torch_dtype": "float32",
    "dtype": "float32",
    "transformers_version": "4.38.2",
}
HUB = {
    **TRANSFORMERS,
    "hidden_dim": 768,
    "n_blocks": 12,
    "n_heads": 12,
    "cond_dim": 128,
    "model_length": 1024,
    "dropout": 0.1,
}
MDLM = {**HUB, "model_type": "mdlm", "vocab_size": 50258, "time_conditioning": False, "return_dict": False}
DUO = {**HUB, "model_type": "duo", "vocab_size": 50258, "causal": False, "var_min": True}
BD3LM = {
    **HUB,
    "model_type": "bd3lm",
    "vocab_size": 50258,
    "block_size": 8,
    "cross_attn": True,
    "adaln": True,
}
GIDD_ = {
    **TRANSFORMERS,
    "model_type": "dit",
    "vocab_size": 50259,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "timestep_cond_dim": 128,
    "max_seq_len": 512,
    "attention_dropout": 0.0,
    "p_uniform": 0.2,
    "t_eps": 1e-4,
}
SEDD: dict[str, Any] = {
    "tokens": 50257,
    "ngpus": 8,
    "graph": {"type": "absorb", "file": "data", "report_all": False},
    "noise": {"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20},
    "sampling": {"predictor": "euler", "steps": 64, "noise_removal": True},
    "model": {
        "name": "small",
        "type": "ddit",
        "hidden_size": 768,
        "cond_dim": 128,
        "length": 1024,
        "n_blocks": 12,
        "n_heads": 12,
        "dropout": 0.1,
        "scale_by_sigma": True,
    },
}
NAMES = ("vocab_embed.embedding", "sigma_map.mlp.0.weight", "output_layer.adaLN_modulation.weight")
PLAIN = {NAMES[0]: (50258, 768), NAMES[1]: (128, 256), NAMES[2]: (1536, 128)}
PLAIN |= {f"blocks.{index}.norm1.weight": (768,) for index in range(12)}
TABLES = dict.fromkeys(("rotary_emb.cos_cached", "rotary_emb.sin_cached"), (1, 512, 3, 1, 64))
FORMATS = {
    "MDLM": (MDLM, PLAIN),
    "SEDD": (SEDD, PLAIN),
    "BD3-LM": (BD3LM, PLAIN),
    "GIDD": (GIDD_, PLAIN | TABLES),
    "Duo": (DUO, PLAIN),
}


def recognised_card(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> AbstractCard | None:
    fitting = [card for card in CARDS if card.recognises(Evidence(config, shapes, "here"))]
    assert len(fitting) < 2
    return fitting[0] if fitting else None


def blueprint(name: str, /, **changes: Any) -> Blueprint:
    config, shapes = FORMATS[name]
    card = recognised_card(config, shapes)
    assert card is not None
    return card.blueprint(Evidence({**config, **changes}, shapes, "here"))


@pytest.mark.parametrize("name", FORMATS)
def test_each_peer_format_is_recognised_by_one_card(name):
    config, shapes = FORMATS[name]
    card = recognised_card(config, shapes)
    assert card is not None
    assert card.name == name
    assert recognised_card(config, {}) is None
    assert recognised_card({}, shapes) is None
    assert recognised_card({**config, "model_type": "llama"}, shapes) is None


@pytest.mark.parametrize("value", [None, 3, "text", [], {}, {"type": []}, [{"type": "absorb"}]], ids=repr)
@pytest.mark.parametrize("key", ["model_type", "graph", "tokens", "model"])
def test_peer_cards_do_not_raise_on_odd_config_values(key, value):
    """`recognised_card` also asserts that two cards never recognise one checkpoint."""
    for config, shapes in FORMATS.values():
        recognised_card({**config, key: value}, shapes)
        recognised_card({**config, key: value}, dict.fromkeys(shapes, ()))


@pytest.mark.parametrize("name", FORMATS)
def test_peer_blueprint_has_published_network_config(name):
    plan = blueprint(name)
    length = 512 if name == "GIDD" else 1024
    rows = 50259 if name == "GIDD" else 50258
    expected = DDiTConfig(
        rows,
        768,
        12,
        12,
        dropout=0.0 if name == "GIDD" else 0.1,
        timestep_embedding=True,
        condition_blocks=True,
        condition_output=True,
        max_length=length,
    )
    assert plan.network == expected
    assert plan.tokenizer == "gpt2"
    assert plan.unknown == ()
    assert all(theirs == ours for ours, theirs in plan.tensors.items())
    assert len(plan.tensors) == 12 * 10 + 10


def test_mdlm_blueprint_has_process_and_parameterization():
    plan = blueprint("MDLM")
    assert (plan.process, plan.noise_schedule) == (Absorbing(50257), LogLinear())
    assert (plan.parameterization, plan.vocabulary) == (LeaveOneOut("zero", shared=True), GPT2)
    assert blueprint("MDLM", time_conditioning=True).parameterization == LeaveOneOut("sigma", shared=True)


def test_duo_blueprint_has_process_and_parameterization():
    plan = blueprint("Duo")
    assert (plan.process, plan.parameterization) == (Uniform(50258), LeaveOneOut("sigma", shared=True))
    assert plan.vocabulary == Vocabulary(50258, bos=50256, eos=50256, pad=50257)


def test_gidd_blueprint_has_process_and_parameterization():
    plan = blueprint("GIDD")
    assert (plan.process, plan.parameterization) == (GIDD(50258, 0.2), LeaveOneOut("fraction", shared=True))
    assert plan.vocabulary == Vocabulary(50258, bos=50256, eos=50256, pad=50257)


def test_bd3lm_blueprint_has_process_and_hyperschedules():
    plan = blueprint("BD3-LM")
    assert (plan.process, plan.noise_schedule) == (Absorbing(50257), LINEAR)
    assert plan.hyperschedules == (Block(1024, 8, 8),)
    assert blueprint("BD3-LM", block_size=1024).hyperschedules == (flat(1024, 128),)
    assert {"sampling_eps_min", "sampling_eps_max"} < set(plan.ignored)


def test_sedd_blueprint_has_process_and_parameterization():
    plan = blueprint("SEDD")
    assert (plan.process, plan.hyperschedules) == (Absorbing(50257), (flat(1024, 64),))
    assert plan.parameterization == LogScore(floor=1e-9, shared=True)
    noise = {"type": "geometric", "sigma_min": 1e-3, "sigma_max": 5}
    plan = blueprint("SEDD", graph={"type": "uniform"}, noise=noise)
    assert (plan.process, plan.noise_schedule) == (Uniform(50257), Geometric(1e-3, 5.0))
    assert plan.network.vocab_size == 50257


def test_mdlm_vocabulary_of_bert_size_has_mask_row_103():
    plan = blueprint("MDLM", vocab_size=30522)
    assert plan.mask_row == 103
    assert plan.vocabulary == Vocabulary(30521, bos=101, eos=102, pad=0)
    assert plan.tokenizer == "bert-base-uncased"
    other = blueprint("MDLM", vocab_size=100)
    assert (other.mask_row, other.vocabulary, other.tokenizer) == (None, Vocabulary(99), None)


@pytest.mark.parametrize("name", FORMATS)
def test_unknown_config_key_is_reported(name):
    assert blueprint(name, novelty=1).unknown == ("novelty",)


def test_unknown_key_in_sedd_table_is_reported_with_dotted_name():
    assert blueprint("SEDD", graph={"type": "absorb", "shape": 1}).unknown == ("graph.shape",)


def test_missing_cond_dim_is_read_from_weights():
    assert blueprint("MDLM", cond_dim=None).network.cond_dim == 128
    assert blueprint("MDLM", cond_dim=129).network.cond_dim == 129


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("MDLM", {"vocab_size": None}, "here.*vocab_size"),
        ("MDLM", {"hidden_dim": "wide"}, "hidden_dim.*'wide'"),
        ("MDLM", {"time_conditioning": 1}, "time_conditioning.*1"),
        ("Duo", {"causal": True}, "causal.*autoregressive"),
        ("BD3-LM", {"causal": True}, "baselines"),
        ("BD3-LM", {"adaln": False}, "baselines"),
        ("BD3-LM", {"block_size": 6}, "block_size.*1024.*6"),
        ("GIDD", {"p_uniform": None}, "p_uniform"),
        ("SEDD", {"graph": {"type": "QGamma"}}, "graph.type.*'QGamma'"),
        ("SEDD", {"noise": {"type": "cosine"}}, "noise.type.*'cosine'"),
        ("SEDD", {"model": {"length": 8}}, "model.n_blocks"),
        ("MDLM", {"n_blocks": 10**9}, "n_blocks.*1000000000.*15 tensors"),
    ],
)
def test_bad_peer_config_is_named(name, changes, named):
    with pytest.raises(ValueError, match=named):
        blueprint(name, **changes)


COUNTING = ("MDLM", "BD3-LM", "GIDD", "Duo")
"""Formats whose config gives the number of rows and no mask id."""


@pytest.mark.parametrize("name", COUNTING)
def test_padded_vocab_size_needs_num_words(name):
    rows = 50304
    with pytest.raises(ValueError, match=r"here: `vocab_size` is 50304, a multiple of 128.*`num_words`"):
        blueprint(name, vocab_size=rows)
    masked = name != "Duo"
    known = 50257 + (not masked or name == "GIDD")
    plan = blueprint(name, vocab_size=rows, num_words=known)
    assert plan.vocabulary.num_words == plan.process.num_words == known
    assert plan.network.vocab_size == known + masked
    assert (plan.padding, plan.mask_row) == (rows - known - masked, None)
    assert plan.tokenizer == "gpt2"
    assert plan.unknown == ()
    whole = blueprint(name, vocab_size=rows, num_words=rows - masked)
    assert (whole.padding, whole.vocabulary.num_words) == (0, rows - masked)


@pytest.mark.parametrize("name", sorted(set(COUNTING) - {"Duo"}))
def test_config_mask_id_selects_the_mask_row(name):
    plan = blueprint(name, vocab_size=1000, mask_token_id=7)
    assert (plan.mask_row, plan.vocabulary.num_words, plan.padding) == (7, 999, 0)
    plan = blueprint(name, vocab_size=1024, mask_id=1023)
    assert (plan.mask_row, plan.vocabulary.num_words, plan.padding) == (None, 1023, 0)
    plan = blueprint(name, vocab_size=1024, mask_id=0, num_words=1000)
    assert (plan.mask_row, plan.vocabulary.num_words, plan.padding) == (0, 1000, 23)
    for changes, named in (
        ({"vocab_size": 1024, "mask_id": 1000}, "`num_words`"),
        ({"vocab_size": 1000, "num_words": 1000}, "at most 999 words"),
        ({"vocab_size": 1000, "num_words": 900, "mask_id": 901}, "cannot be row 901"),
        ({"vocab_size": 1000, "mask_id": 1000}, "`mask_id` must be a row, 0 to 999; got 1000"),
        ({"vocab_size": 1000, "mask_id": True}, "`mask_id` must be a row"),
        ({"vocab_size": 1000, "num_words": 0}, "num_words"),
    ):
        with pytest.raises(ValueError, match=named):
            blueprint(name, **changes)


def test_training_checkpoints_of_gidd_are_refused():
    """The number of rows is rounded up, so the last row is not the mask, and the file does not state the mask row."""
    card = recognised_card(GIDD_, PLAIN | TABLES)
    assert card is not None
    with pytest.raises(ValueError, match="logit_bias"):
        card.blueprint(Evidence(GIDD_, PLAIN | TABLES | {"logit_bias": (1, 1, 1)}, "here"))
