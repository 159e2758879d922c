"""Lightning checkpoints as the trainers of MDLM, Duo and BD3-LM write them: everything pickled that they pickle.

The tensors are those of the golden folders. Around them stand an OmegaConf configuration, a tokenizer of
`transformers`, the state of an optimizer, of loops and of callbacks, as in published files.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import omegaconf
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

from hdlm.hub import inspect, load
from hdlm.hub.stored import _WRAPPERS
from tests.peer import CLOSE, Peer, logits

PEERS = ("mdlm", "duo", "bd3lm")
MODEL = {
    "name": "tiny", "type": "ddit", "hidden_size": 48, "cond_dim": 16, "length": 16, "n_blocks": 2, "n_heads": 4,
    "scale_by_sigma": True, "dropout": 0.1, "tie_word_embeddings": False,
}  # fmt: skip


def configuration(name: str) -> omegaconf.DictConfig:
    """The configuration of a trainer, with interpolations and resolvers in it."""
    algorithm = {"backbone": "dit", "parameterization": "subs", "time_conditioning": False, "T": 0}
    shared = {
        "mode": "train",
        "seed": 1,
        "model": MODEL,
        "data": {"tokenizer_name_or_path": "gpt2", "wrap": True, "none": None},
        "loader": {"batch_size": "${div_up:${.global_batch_size}, 2}", "global_batch_size": 512},
        "noise": {"type": "loglinear" if name == "mdlm" else "log-linear"},
        "wandb": {"tags": ["${noise.type}", "${data.train}"]},
        "checkpointing": {"save_dir": "${cwd:}", "missing": "???"},
    }
    if name == "mdlm":
        return omegaconf.OmegaConf.create(shared | algorithm)
    own = {"name": name, "causal_attention": False, "cross_attn": True}
    return omegaconf.OmegaConf.create(shared | {"algo": algorithm | own, "block_size": 4})


def lightning_content(folder: Path, name: str) -> dict[str, Any]:
    """The content of a checkpoint."""
    if name == "bd3lm":
        order = list(torch.load(folder.parent / "mdlm" / "mdlm.ckpt")["state_dict"])
        stored = load_file(folder / "model.safetensors")
        state = {key: stored[key] for key in [*order, *sorted(stored.keys() - set(order))]}
        shadow = [value for key, value in state.items() if key.startswith("backbone") and "rotary" not in key]
        content = {"state_dict": state, "ema": {"decay": 0.9999, "num_updates": 9, "shadow_params": shadow}}
    else:
        content = torch.load(folder / f"{name}.ckpt")
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.zeros(1, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, functools.partial(max, 1))
    words = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    best = {"monitor": "val/nll", "best_model_score": torch.tensor(3.5), "dirpath": Path("checkpoints")}
    return content | {
        "pytorch-lightning_version": "2.2.1",
        "global_step": 1000,
        "hparams_name": "kwargs",
        "hyper_parameters": {
            "config": configuration(name),
            "tokenizer": transformers.PreTrainedTokenizerFast(tokenizer_object=words),
        },
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict() | {"lr_lambdas": [functools.partial(max, 1)]}],
        "callbacks": {"ModelCheckpoint{'monitor': 'val/nll'}": best},
        "loops": {"fit_loop": {"state_dict": defaultdict(dict), "epoch_progress": {"total": {"ready": 1}}}},
        "sampler": {"random_state": torch.get_rng_state(), "counter": 3},
    }


@pytest.fixture(params=PEERS)
def name(request):
    return request.param


def test_lightning_checkpoint_loads_without_config_file(tmp_path, shared, name):
    """The configuration inside the checkpoint describes the model."""
    folder, path = shared / "golden" / "peers" / name, tmp_path / "last.ckpt"
    torch.save(lightning_content(folder, name), path)
    hub, ours = load(folder), load(path)
    assert inspect(path).card == inspect(folder).card
    assert ours.denoiser.process == hub.denoiser.process
    assert ours.denoiser.parameterization == hub.denoiser.parameterization
    assert (ours.hyperschedules, ours.noise_schedule) == (hub.hyperschedules, hub.noise_schedule)
    assert ours.training["step"] == 1000
    weights = dict(hub.network.named_parameters())
    assert all(torch.equal(value, weights[key]) for key, value in ours.network.named_parameters())


@pytest.mark.parametrize("name", ["mdlm", "duo"])
def test_lightning_checkpoint_logits_equal_published(tmp_path, shared, name):
    peer, path = Peer(shared / "golden" / "peers" / name), tmp_path / "last.ckpt"
    torch.save(lightning_content(peer.folder, name), path)
    u = peer.noise_schedule.fraction(peer["t"].double())
    expected = {"averaged": "logits", "raw": "logits__ckpt_raw"}
    if name == "mdlm":
        expected = {"averaged": "logits__hub", "raw": "logits__hub_ckpt_raw"}
    for which, key in expected.items():
        ours = logits(load(path, weights=which).denoiser, peer["input_ids"], u)
        torch.testing.assert_close(ours, peer[key], **CLOSE)


def test_loading_lightning_checkpoint_imports_no_trainer_package(tmp_path, shared):
    folder, path = shared / "golden" / "peers" / "mdlm", tmp_path / "last.ckpt"
    torch.save(lightning_content(folder, "mdlm"), path)
    code = "import sys, hdlm; hdlm.load(sys.argv[1]); print({'omegaconf', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "ar"},
        {"parameterization": "d3pm"},
        {"noise": {"type": "geometric"}},
        {"algo": {"name": "x"}},
    ],
    ids=repr,
)
def test_lightning_config_of_unknown_model_is_refused(tmp_path, shared, change):
    content = lightning_content(shared / "golden" / "peers" / "mdlm", "mdlm")
    content["hyper_parameters"]["config"].update(change)
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"has no config.*inside the file is not of a model that hdlm reads"):
        load(tmp_path / "last.ckpt")


CHAINS = [
    ("_orig_mod.module.", ""),
    ("", "_orig_mod."),
    ("", "module."),
    ("model.", ""),
    ("module._orig_mod.model.", "_orig_mod.module."),
    ("student.", "_forward_module."),
]


@pytest.mark.parametrize("name", ["mdlm", "duo", "bd3lm", "gidd", "sedd", "sedd_uniform"])
@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_load_strips_any_chain_of_wrapper_prefixes(tmp_path, shared, name, kind):
    folder = shared / "golden" / "peers" / name
    stored = load_file(folder / "model.safetensors")
    expected = dict(load(folder).network.named_parameters())
    shutil.copy(folder / "config.json", tmp_path)
    file = tmp_path / ("model.safetensors" if kind == "safetensors" else "pytorch_model.bin")
    order = torch.Generator().manual_seed(len(name))
    known = sorted(_WRAPPERS)
    drawn = [known[int(torch.randint(len(known), (), generator=order))] for _ in range(8)]
    for before, after in [*CHAINS, (".".join(drawn[:4]) + ".", ".".join(drawn[4:]) + ".")]:
        wrapped = {}
        for key, value in stored.items():
            prefix, rest = ("backbone.", key[9:]) if key.startswith("backbone.") else ("", key)
            inner = after if prefix or before else ""
            wrapped[f"{before}{prefix}{inner}{rest}".replace("blocks.0.", "blocks.0._orig_mod.")] = value
        (save_file if kind == "safetensors" else torch.save)(wrapped, file)
        ours = dict(load(tmp_path).network.named_parameters())
        assert all(torch.equal(value, expected[key]) for key, value in ours.items())
    twice = stored | {f"module.{key}": value.clone() for key, value in stored.items()}
    (save_file if kind == "safetensors" else torch.save)(twice, file)
    with pytest.raises(ValueError, match=r"holds .* and module.*, which are one parameter of the network"):
        load(tmp_path)


def test_padded_gidd_rows_need_num_words(tmp_path, shared):
    """The rows are padded to 128. With `num_words` the padding rows are removed."""
    folder = shared / "golden" / "peers" / "gidd"
    stored, hub = load_file(folder / "model.safetensors"), load(folder)
    for key in ("vocab_embed.embedding", "output_layer.linear.weight", "output_layer.linear.bias"):
        stored[key] = torch.cat([stored[key], torch.randn(128 - 59, *stored[key].shape[1:])])
    save_file(stored, tmp_path / "model.safetensors")
    text = (folder / "config.json").read_text().replace('"vocab_size": 59', '"vocab_size": 128')
    (tmp_path / "config.json").write_text(text)
    for function in (load, inspect):
        with pytest.raises(ValueError, match=r"`vocab_size` is 128, .*which row is the mask.*`num_words`"):
            function(tmp_path)
    ours = load(tmp_path, num_words=58)
    assert inspect(tmp_path, num_words=58).blueprint.padding == 69
    assert ours.denoiser.process == hub.denoiser.process
    expected = dict(hub.network.named_parameters())
    assert all(torch.equal(value, expected[key]) for key, value in ours.network.named_parameters())
    with pytest.raises(ValueError, match=r"`num_words` 7 is not that of its format"):
        load(shared / "golden" / "peers" / "sedd", num_words=7)
    with pytest.raises(ValueError, match=r"`mask_id` 3 is not that of its format .*the model has no mask"):
        load(shared / "golden" / "peers" / "duo", mask_id=3)
