"""The model of `smart_model_loader`, called as in the published code, equals the published model."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from hdlm.checkpoint import save_checkpoint
from hdlm.denoiser import Denoiser
from hdlm.hf_utils import smart_model_loader
from hdlm.hyperschedule import Block
from hdlm.published.model import AbstractPublishedModel, GammaModel, Metaschedule, say_once
from tests.parity.test_golden_network import plain_cases

CLOSE = {"atol": 1e-4, "rtol": 0}


class Golden:
    """A published folder, loaded, and its arrays."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.arrays = np.load(folder / "io.npz")
        loaded = smart_model_loader(folder, device="cpu", **options)
        self.model, self.cfg, self.device, self.accelerator, self.metaschedule = loaded
        self.model.requires_grad_(False)

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def find(self, name: str) -> Tensor | None:
        return self[name] if name in self.arrays else None

    def call(
        self, case: str = "none", model: AbstractPublishedModel | None = None, **arguments: Any
    ) -> Tensor:
        """What the model says in a case; epsilon-hybrids are told no sigma."""
        sigma = self.find(f"sigma__{case}")
        arguments = {"positions": self["positions"], "attn_mask": self.find(f"mask__{case}"), **arguments}
        told = () if "sigma__random" not in self else (self["sigma__random"] if sigma is None else sigma,)
        return (model or self.model)(self["input_ids"], *told, **arguments)


@pytest.fixture(scope="module", params=["epsilon", "gamma"])
def golden(request, shared) -> Golden:
    return Golden(shared / "golden" / request.param)


@pytest.fixture(scope="module")
def epsilon(shared) -> Golden:
    return Golden(shared / "golden" / "epsilon")


@pytest.fixture(scope="module")
def gamma(shared) -> Golden:
    return Golden(shared / "golden" / "gamma")


@pytest.mark.parametrize("case", plain_cases("both"))
def test_published_model_output_equals_golden_for_every_mask(golden, case):
    torch.testing.assert_close(golden.call(case), golden[f"logits__{case}"], **CLOSE)


@pytest.mark.parametrize("case", ["offset5", "scale3", "dup"])
def test_published_model_uses_positions_of_each_call(epsilon, case):
    """The published model remembers the first positions it was given (FAULTS 11)."""
    for positions, expected in [
        ("positions", "none"),
        (f"positions__{case}", f"pos_{case}"),
        ("positions", "none"),
    ]:
        logits = epsilon.model(epsilon["input_ids"], epsilon[positions])
        torch.testing.assert_close(logits, epsilon[f"logits__{expected}"], **CLOSE)
    assert float(epsilon["stale_rotary_maxdiff"]) == 0


def test_published_model_accepts_positions_of_one_row_or_none(golden):
    expected = golden["logits__none"]
    row = golden["positions"][0]
    assert (golden["positions"] == row).all()
    for positions in (row, row[None], None):
        torch.testing.assert_close(golden.call(positions=positions), expected, **CLOSE)


def test_published_model_scores_without_positions_equal_golden(gamma):
    scores = gamma.model(gamma["input_ids"], gamma["sigma__random"])
    torch.testing.assert_close(scores, gamma["logits__none_nopositions"], **CLOSE)


def test_published_model_accepts_masks_without_rows_or_with_heads(golden):
    expected = golden["logits__causal"]
    mask = golden["mask__causal"]
    for form in (mask[0], mask[:, None]):
        torch.testing.assert_close(golden.call("causal", attn_mask=form), expected, **CLOSE)


@pytest.mark.parametrize("case", [case for case in plain_cases("gamma") if "_s" in case])
def test_published_model_scores_with_settled_tokens_equal_golden(gamma, case):
    settled = gamma[f"settled__{case}"]
    scores = gamma.call(case, settled_tokens=settled)
    torch.testing.assert_close(scores, gamma[f"logits_settled__{case}"], **CLOSE)


@pytest.mark.parametrize("method", ["SAR", "AR"])
def test_published_model_settled_tokens_of_sampling_method_equal_golden(golden, method):
    """Shipped epsilon-hybrids do not post-process; the record was made with it switched on."""
    model = type(golden.model)(
        golden.model.checkpoint, golden.cfg, post_process=True, autoregressive=method == "AR"
    )
    if "settled" in golden:
        settled, expected = golden["settled"], golden[f"logits__post_{method}"]
    else:
        name = "manual_AR" if method == "AR" else "manual"
        settled, expected = golden["settled__manual"], golden[f"logits_settled__{name}"]
    torch.testing.assert_close(golden.call(model=model, settled_tokens=settled), expected, **CLOSE)
    plain = golden["logits__none"]
    assert not torch.allclose(expected, plain)
    torch.testing.assert_close(golden.call(model=model), plain, **CLOSE)


def test_published_config_enables_post_processing(shared, tmp_path):
    golden = Golden(shared / "golden" / "epsilon")
    assert torch.equal(golden.call(), golden.call(settled_tokens=golden["settled"]))
    config = json.loads((golden.folder / "config.json").read_text())
    config["model"]["post_process_logits"] = True
    config["annealing"]["sampling_method"] = "AR"
    (tmp_path / "config.json").write_text(json.dumps(config))
    changed = Golden(golden.folder, config_path=tmp_path / "config.json")
    logits = changed.call(settled_tokens=golden["settled"])
    torch.testing.assert_close(logits, golden["logits__post_AR"], **CLOSE)


def test_published_model_scores_without_scaling_equal_golden(gamma):
    own = gamma.model.denoiser
    raw = dataclasses.replace(own.parameterization, scale_by_sigma=False)
    checkpoint = dataclasses.replace(
        gamma.model.checkpoint, denoiser=Denoiser(own.backbone, own.process, raw)
    )
    scores = gamma.call(model=GammaModel(checkpoint))
    torch.testing.assert_close(scores, gamma["logits__raw_noscale_nopost"], **CLOSE)


def test_every_recorded_model_case_is_compared(golden):
    """What is in the file is compared above."""
    compared = {f"logits__{case}" for case in plain_cases("both")}
    compared |= {f"logits_settled__{case}" for case in plain_cases("both") if "_s" in case}
    compared |= {"logits_settled__manual", "logits_settled__manual_AR", "logits__post_SAR", "logits__post_AR"}
    compared |= {"logits__pos_offset5", "logits__pos_scale3", "logits__pos_dup"}
    compared |= {"logits__none_nopositions", "logits__raw_noscale_nopost"}
    assert {name for name in golden.arrays.files if name.startswith("logits")} <= compared


@pytest.mark.parametrize("name", ["epsilon_vocab50257", "gamma_vocab50257"])
def test_published_model_output_equals_golden_for_gpt2_vocabulary(shared, name):
    golden = Golden(shared / "golden" / name)
    told = (golden["sigma"],) if "sigma" in golden else ()
    for case in ("none", "mask"):
        mask = golden["mask"] if case == "mask" else None
        logits = golden.model(golden["input_ids"], *told, positions=golden["positions"], attn_mask=mask)
        torch.testing.assert_close(logits[..., golden["cols"]], golden[f"logits_cols__{case}"], **CLOSE)
        assert torch.equal(logits.argmax(-1), golden[f"argmax__{case}"])


def test_smart_model_loader_returns_config_model_and_device(golden):
    family = f"{golden.folder.name}_hybrid"
    assert golden.cfg.model_type == golden.cfg["model_type"] == family
    assert golden.cfg.model.length == golden.cfg["model"]["length"] == 32
    assert golden.cfg.tokenizer.tokens == 97
    assert golden.cfg.annealing.eval_tau == 4
    assert golden.model.config is golden.cfg
    assert not golden.model.training
    assert not any(layer.training for layer in golden.model.modules())
    assert golden.device == golden.model.device == torch.device("cpu")
    assert isinstance(golden.accelerator, Accelerator)
    assert golden.accelerator.device.type == "cpu"
    assert golden.metaschedule == Metaschedule(Block(32, 8, 4))
    assert golden.metaschedule.max_step == 16


def test_published_model_state_dict_has_published_names(golden):
    state = torch.load(golden.folder / "pytorch_model.bin", weights_only=True)
    assert {name: value.shape for name, value in golden.model.state_dict().items()} == {
        name: value.shape for name, value in state.items()
    }
    golden.model.load_state_dict(state, strict=True)


def test_published_model_shares_weights_with_denoiser(shared):
    model = Golden(shared / "golden" / "epsilon").model.double().train()
    assert next(model.denoiser.parameters()).dtype == torch.float64
    assert all(layer.training for layer in model.checkpoint.network.blocks)
    copied = pickle.loads(pickle.dumps(model))
    assert next(copied.parameters()) is next(copied.denoiser.parameters())


@pytest.mark.parametrize("named", ["auto", "own", "other", "unknown"])
def test_smart_model_loader_checks_model_type(golden, named):
    own = golden.cfg.model_type
    other = {"epsilon_hybrid": "gamma_hybrid", "gamma_hybrid": "epsilon_hybrid"}[own]
    model_type = {"own": own, "other": other, "unknown": "delta_hybrid"}.get(named, named)
    if named in ("auto", "own"):
        assert type(smart_model_loader(golden.folder, model_type, "cpu")[0]) is type(golden.model)
        return
    with pytest.raises(ValueError, match=own if named == "other" else "Unknown `model_type`"):
        smart_model_loader(golden.folder, model_type, "cpu")


def test_smart_model_loader_accepts_accelerator(golden):
    given = Accelerator(cpu=True)
    assert smart_model_loader(golden.folder, device="cpu", accelerator=given)[3] is given


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_smart_model_loader_falls_back_to_cpu(golden, capsys):
    say_once.cache_clear()
    for _ in range(2):
        _, _, device, _, _ = smart_model_loader(
            model_path=str(golden.folder), model_type="auto", device="cuda"
        )
    assert device.type == "cpu"
    assert capsys.readouterr().err.count("using the CPU") == 1


def test_smart_model_loader_loads_hdlm_checkpoint(golden, tmp_path):
    save_checkpoint(tmp_path, golden.model.checkpoint)
    model, cfg, _, _, metaschedule = smart_model_loader(tmp_path, device="cpu")
    torch.testing.assert_close(golden.call(model=model), golden.call(), **CLOSE)
    assert cfg.model_type == golden.cfg.model_type
    assert cfg.model.length == 32
    assert metaschedule == golden.metaschedule
    fresh = dataclasses.replace(golden.model.checkpoint, training={})
    save_checkpoint(tmp_path, fresh)
    cfg = smart_model_loader(tmp_path, device="cpu")[1]
    assert (cfg.model_type, cfg.tokenizer.tokens) == (golden.cfg.model_type, 97)
    assert cfg.annealing.attention.context_type == "block_causal"


def test_smart_model_loader_keeps_unresolved_interpolations(shared, tmp_path):
    for name in ("model.safetensors", "config.json"):
        shutil.copy(shared / "golden" / "epsilon" / name, tmp_path / name)
    config = json.loads((tmp_path / "config.json").read_text())
    odd = ["${oc.env:HOME}", "\\${x}", "a ${now:%Y} b", "${"]
    config["experiment"]["name"] = odd
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert list(smart_model_loader(tmp_path, device="cpu")[1].experiment.name) == odd


def test_published_model_save_pretrained_round_trip(golden, tmp_path):
    golden.model.save_pretrained(tmp_path)
    again = smart_model_loader(tmp_path, device="cpu")[0]
    assert again.state_dict().keys() == golden.model.state_dict().keys()
    saved = dict(again.named_parameters())
    assert all(torch.equal(saved[name], own) for name, own in golden.model.named_parameters())
    torch.testing.assert_close(golden.call(model=again), golden.call(), **CLOSE)
    sent = golden.model.push_to_hub("me/mine", dry_run=True)
    assert sent.private
    assert {"config.json", "model.safetensors", "README.md"} <= {name for name, _ in sent.files}
