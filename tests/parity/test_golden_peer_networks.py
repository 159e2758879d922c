"""One config expresses the networks of MDLM, SEDD, BD3-LM and Duo too: their weights load, their outputs match."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hdlm.network import DDiT, DDiTConfig

LENGTH = 16


@pytest.mark.parametrize(
    ("name", "condition", "expected"),
    [
        ("mdlm", "sigma", "logits__backbone_sigma"),
        ("sedd", "sigma", "raw_output"),
        ("duo", "sigma", "logits"),
        ("bd3lm", None, "logits_two_stream__bs4"),
    ],
)
def test_peer_network_output_equals_recorded(shared, name, condition, expected):
    folder = shared / "golden" / "peers" / name
    arrays = {
        key: torch.from_numpy(value) for key, value in np.load(folder / "io.npz").items() if value.shape
    }
    weights = {
        key.removeprefix("backbone."): value
        for key, value in load_file(folder / "model.safetensors").items()
        if not key.startswith("sampling_eps")  # BD3-LM's noise range travels with its network
    }
    switches = dict.fromkeys(("timestep_embedding", "condition_blocks", "condition_output"), True)
    rows = len(weights["vocab_embed.embedding"])
    network = DDiT(DDiTConfig(rows, 48, 2, 4, cond_dim=16, max_length=LENGTH, **switches)).eval()
    network.load_state_dict(weights, strict=True)
    if condition is None:  # two streams, the noisy one first, and never told the noise
        output = network(
            torch.cat([arrays["xt"], arrays["x0"]], dim=1),
            positions=torch.arange(LENGTH).repeat(2)[None],
            condition=torch.zeros(1, 1),
            attention=arrays["mask_two_stream__bs4"][None],
        )[:, :LENGTH]
    else:
        output = network(arrays["input_ids"], condition=arrays[condition][:, None])
    torch.testing.assert_close(output, arrays[expected], atol=1e-4, rtol=0)
