"""A checkpoint in the shape of a 7B model, with 1.5B parameters in bfloat16: memory of loading, and logits read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

HIDDEN, INNER, LAYERS, ROWS, KEYS = 2048, 5632, 20, 152064, 512
CONFIG = {
    "model_type": "Dream",
    "architectures": ["DreamModel"],
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 2048,
    "vocab_size": ROWS,
    "tie_word_embeddings": False,
    "mask_token_id": 151666,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "pad_token_id": 151643,
}
LAYER = {
    "input_layernorm.weight": (HIDDEN,),
    "post_attention_layernorm.weight": (HIDDEN,),
    "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    "self_attn.q_proj.bias": (HIDDEN,),
    "self_attn.k_proj.weight": (KEYS, HIDDEN),
    "self_attn.k_proj.bias": (KEYS,),
    "self_attn.v_proj.weight": (KEYS, HIDDEN),
    "self_attn.v_proj.bias": (KEYS,),
    "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    "mlp.gate_proj.weight": (INNER, HIDDEN),
    "mlp.up_proj.weight": (INNER, HIDDEN),
    "mlp.down_proj.weight": (HIDDEN, INNER),
}
MEASURE = """
import json, sys
from pathlib import Path
import torch, hdlm
from hdlm.sampling import Prompt, algorithm, sample

def memory(which):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))

before = memory("VmRSS")
model = hdlm.load(sys.argv[1], dtype=torch.bfloat16)
size = sum(p.numel() * p.element_size() for p in model.network.parameters())
loaded, rows, head = memory("VmHWM") - before, [], model.network.output_layer.forward
model.network.output_layer.forward = lambda hidden: (rows.append(hidden[..., 0].numel()), head(hidden))[1]
regime = model.regime(hdlm.flat(12, 2))
process = model.denoiser.process
written = sample(model.denoiser, regime, algorithm("original", process), prompt=Prompt.prefix([1, 2, 3, 4], 12))
print(json.dumps({
    "size": size, "share": loaded / size, "sampled": (memory("VmHWM") - before) / size, "rows": rows,
    "words": int((written.tokens < process.num_words).sum()), "dtype": str(model.network.vocab_embed.weight.dtype),
}))
"""


def write_shards(folder: Path) -> int:
    """Random weights, a few layers in each file; returns the number of bytes."""
    folder.mkdir()
    shapes = {f"model.layers.{n}.{name}": shape for n in range(LAYERS) for name, shape in LAYER.items()}
    files = [
        {name: shape for name, shape in shapes.items() if int(name.split(".")[2]) // 5 == n} for n in range(4)
    ]
    files[0]["model.embed_tokens.weight"] = (ROWS, HIDDEN)
    files[-1] |= {"lm_head.weight": (ROWS, HIDDEN), "model.norm.weight": (HIDDEN,)}
    places = {}
    for number, own in enumerate(files):
        name = f"model-{number + 1:05}-of-{len(files):05}.safetensors"
        tensors = {
            key: torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02) for key, shape in own.items()
        }
        save_file(tensors, folder / name)
        places |= dict.fromkeys(own, name)
    size = 2 * sum(torch.Size(shape).numel() for own in files for shape in own.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return size


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_large_decoder_is_loaded_within_its_size_and_sampled(tmp_path: Path) -> None:
    """Loading needs less than 1.15 times the weights, and words are projected only where they are written."""
    size = write_shards(tmp_path / "large")
    assert size > 3e9
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "large")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    done = json.loads(finished.stdout)
    assert done["dtype"] == "torch.bfloat16"
    assert done["size"] == size
    assert 0.95 < done["share"] < 1.15, done
    assert done["sampled"] < 1.25, done
    assert sum(done["rows"]) == 8, done
    assert done["words"] == 12
