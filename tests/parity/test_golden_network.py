"""The network computes what the published one computes: logits, log scores and gradients.

In the golden masks True means: may NOT attend. Cases with post-processed logits are tested elsewhere.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.npyio import NpzFile
from safetensors.torch import load_file
from torch import Tensor

from hdlm.network import DDiT, DDiTConfig

TOLERANCE = 1e-4
FOLDERS = ("epsilon", "gamma")
REAL_VOCABULARY = ("epsilon_vocab50257", "gamma_vocab50257")


def published_shape(config: dict[str, Any]) -> DDiTConfig:
    model = config["model"]
    return DDiTConfig(
        vocab_size=config["tokenizer"]["tokens"] + 1,
        hidden_size=model["hidden_size"],
        num_blocks=model["n_blocks"],
        num_heads=model["n_heads"],
        cond_dim=model["cond_dim"],
        dropout=model["dropout"],
        timestep_embedding=model.get("use_timestep_embedding", False),
        condition_blocks=model.get("transformer_sigma_conditioning", False),
        max_length=model["length"],
    )


class Golden:
    """A published folder: network, inputs, outputs, and what its family does around the network."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.network = DDiT(published_shape(self.config)).eval()
        self.network.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
        self.arrays: NpzFile = np.load(folder / "io.npz")
        self.folder = folder

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def attention(self, case: str) -> Tensor | None:
        return ~self[f"mask__{case}"] if f"mask__{case}" in self.arrays else None

    def output(self, sigma: Tensor | None, scaled: bool = True, **arguments: Any) -> Tensor:
        """Logits, or log scores where the network is told the noise."""
        if sigma is None:
            return self.network(self["input_ids"], **arguments)
        blend = 1 - torch.exp(-self.config["graph"]["gamma"] * sigma)
        raw = self.network(self["input_ids"], condition=sigma, blend=blend, **arguments)
        if not scaled:
            return raw
        return raw - torch.log(torch.expm1(sigma))[..., None] - math.log(self.config["tokenizer"]["tokens"])

    def sigma(self, case: str) -> Tensor | None:
        if "gamma" not in self.folder.name:
            return None
        return self[f"sigma__{case}"] if f"sigma__{case}" in self.arrays else self["sigma__random"]


def plain_cases(name: str) -> list[str]:
    """The names of the golden masks, listed so that a missing array makes a test fail."""
    steps = ("s1", "s4", "s5", "s6", "s9", "s16", "s17")
    cases = ["none", "causal", "random", "ar_block_w8_t4_s6_block_causal_causal"]
    cases += [f"block_w8_t4_{step}_block_causal_full" for step in steps]
    cases += ["block_w8_t4_s6_causal_causal", "block_w8_t4_s6_full_full"]
    return cases + [f"simple_w8_t8_{step}_block_causal_full" for step in ("s3", "s8", "s13")]


@pytest.fixture(scope="module", params=FOLDERS)
def golden(request, shared) -> Golden:
    return Golden(shared / "golden" / request.param)


@pytest.mark.parametrize("case", plain_cases("epsilon"))
def test_network_output_equals_published_for_every_mask(golden, case):
    output = golden.output(
        golden.sigma(case), positions=golden["positions"], attention=golden.attention(case)
    )
    torch.testing.assert_close(output, golden[f"logits__{case}"], atol=TOLERANCE, rtol=0)


def test_every_recorded_network_case_is_compared(golden):
    """Whatever is in the file is either compared here or belongs to the post-processing of logits."""
    compared = {f"logits__{case}" for case in plain_cases(golden.folder.name)}
    compared |= {"logits__pos_offset5", "logits__pos_scale3", "logits__pos_dup"}
    compared |= {"logits__none_nopositions", "logits__raw_noscale_nopost"}
    in_file = {name for name in golden.arrays.files if name.startswith("logits__")}
    assert in_file - compared <= {"logits__post_SAR", "logits__post_AR"}


@pytest.mark.parametrize("case", ["offset5", "scale3", "dup"])
def test_network_output_equals_published_for_other_positions(shared, case):
    golden = Golden(shared / "golden" / "epsilon")
    for positions, expected in [("positions", "none"), (f"positions__{case}", f"pos_{case}")]:
        output = golden.output(
            None, positions=golden[positions]
        )  # one object, called twice: nothing is stale
        torch.testing.assert_close(output, golden[f"logits__{expected}"], atol=TOLERANCE, rtol=0)


def test_log_scores_without_positions_and_without_scaling(shared):
    golden = Golden(shared / "golden" / "gamma")
    sigma = golden["sigma__random"]
    torch.testing.assert_close(
        golden.output(sigma), golden["logits__none_nopositions"], atol=TOLERANCE, rtol=0
    )
    raw = golden.output(sigma, scaled=False, positions=golden["positions"])
    torch.testing.assert_close(raw, golden["logits__raw_noscale_nopost"], atol=TOLERANCE, rtol=0)


def test_network_gradients_equal_published(golden):
    case = "block_w8_t4_s6_block_causal_full"
    expected = np.load(golden.folder / "grads.npz")
    output = golden.output(
        golden.sigma(case), positions=golden["positions"], attention=golden.attention(case)
    )
    loss = torch.nn.functional.cross_entropy(
        output.flatten(0, 1), torch.from_numpy(expected["target"]).flatten()
    )
    golden.network.zero_grad()
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"].item(), abs=TOLERANCE)
    assert {f"grad__{name}" for name, _ in golden.network.named_parameters()} == {
        name for name in expected.files if name.startswith("grad__")
    }
    for name, parameter in golden.network.named_parameters():
        wanted = torch.from_numpy(expected[f"grad__{name}"])
        torch.testing.assert_close(
            parameter.grad, wanted, atol=TOLERANCE, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", REAL_VOCABULARY)
@pytest.mark.parametrize("case", ["none", "mask"])
def test_network_output_equals_published_for_gpt2_vocabulary(shared, name, case):
    golden = Golden(shared / "golden" / name)
    attention = ~golden["mask"] if case == "mask" else None
    sigma = golden["sigma"] if "sigma" in golden.arrays else None
    output = golden.output(sigma, positions=golden["positions"], attention=attention)
    close = {"atol": TOLERANCE, "rtol": 0}
    torch.testing.assert_close(output[..., golden["cols"]], golden[f"logits_cols__{case}"], **close)
    torch.testing.assert_close(output.double().logsumexp(-1), golden[f"logsumexp__{case}"], **close)
    torch.testing.assert_close(output.max(-1).values, golden[f"max__{case}"], **close)
    assert torch.equal(output.argmax(-1), golden[f"argmax__{case}"])
    at_input = output.gather(-1, golden["input_ids"][..., None])[..., 0]
    torch.testing.assert_close(at_input, golden[f"at_input__{case}"], **close)
