"""Loading: every kind of source, and the errors for wrong sources."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

import hdlm
import hdlm.data
from hdlm.checkpoint import save_checkpoint
from hdlm.checkpoint.weights import Safetensors, fill, skeleton
from hdlm.data import Tokenizer
from hdlm.hub import CARDS, Evidence, inspect, load
from hdlm.hub.configs import read_config, resolve_interpolations
from hdlm.hub.load import recognise
from hdlm.hyperschedule import Block, PublishedSlide, PublishedWave, Slide, flat
from hdlm.noise_schedule import Geometric, LogLinear
from hdlm.parameterization import LogScore, Mean, Shifted
from hdlm.process import Absorbing, EpsilonHybrid, GammaHybrid
from tests.hub_cache import environment, publish, use
from tests.hub_folders import EPSILON, GAMMA, LENGTH, WORDS, changed, folder, network, run, tensors

TABLES = {"epsilon": EPSILON, "gamma": GAMMA}
NAME = "somebody/something"


def parameters(checkpoint) -> dict[str, torch.Tensor]:
    return dict(checkpoint.network.named_parameters())


def same_tensors(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def parameters_of_seed(config, seed):
    return dict(network(config, seed).named_parameters())


@pytest.fixture(params=TABLES)
def config(request):
    return TABLES[request.param]


# -- sources ----------------------------------------------------------------------------------------------


def test_load_published_folder(tmp_path, config):
    loaded = hdlm.load(folder(tmp_path / "model", config))
    assert same_tensors(parameters(loaded), parameters_of_seed(config, 0))
    assert not loaded.denoiser.training
    assert loaded.training["config"]["tokenizer"] == config["tokenizer"]


def test_load_sharded_safetensors(tmp_path, config):
    whole = folder(tmp_path / "model", config)
    weights = load_file(whole / "model.safetensors")
    (whole / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: weights[name] for name in held}, whole / file)
    table = {name: file for file, held in parts.items() for name in held}
    index = whole / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table}))
    assert same_tensors(parameters(load(whole)), parameters_of_seed(config, 0))
    for names, message in (
        (["../../secret.safetensors"], "which is not a part of a model"),
        (["model-00009-of-00009.safetensors"], "lacks model-00009-of-00009"),
    ):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(names, names[0])}))
        with pytest.raises(ValueError, match=message):
            load(whole)


def test_load_prefers_safetensors_to_pickle(tmp_path, config):
    whole = folder(tmp_path, config)
    (whole / "pytorch_model.bin").write_bytes(b"not even looked at")
    assert same_tensors(parameters(load(whole)), parameters_of_seed(config, 0))


def test_load_run_folder_uses_newest_checkpoint(tmp_path, config):
    here = run(tmp_path / "run", config)
    run(tmp_path / "run", config, step=12)
    assert same_tensors(parameters(load(here)), parameters_of_seed(config, 1))
    assert same_tensors(parameters(load(here, weights="raw")), parameters_of_seed(config, 0))
    assert load(here).training["step"] == 12
    assert (load(here).training["weights"], load(here, weights="raw").training["weights"]) == (
        "averaged",
        "raw",
    )
    file = here / "checkpoints" / "checkpoint_3.pth"
    assert load(file).training["step"] == 3


def test_load_prefers_hdlm_checkpoint_to_run_in_one_folder(tmp_path):
    """Files of hydra beside a checkpoint do not make its folder a published run."""
    here = run(tmp_path / "run", EPSILON)
    save_checkpoint(here, load(folder(tmp_path / "other", GAMMA)))
    assert inspect(here).card == "hdlm"
    assert load(here).denoiser.process == GammaHybrid(WORDS, 0.05)
    file = here / "checkpoints" / "checkpoint_3.pth"
    assert load(file).denoiser.process == EpsilonHybrid(WORDS, 0.1)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_load_strips_wrapper_prefixes(tmp_path, config, prefix):
    model = {f"{prefix}{name}": value for name, value in tensors(config).items()}
    here = run(tmp_path, config, model=model)
    assert same_tensors(parameters(load(here)), parameters_of_seed(config, 1))
    assert same_tensors(parameters(load(here, weights="raw")), parameters_of_seed(config, 0))


def test_load_lightning_checkpoint(tmp_path, config):
    content = {
        "state_dict": tensors(config),
        "ema": {
            "decay": 0.9,
            "num_updates": 3,
            "shadow_params": [p.detach() for p in network(config, 1).parameters()],
        },
        "global_step": 7,
        "loops": {},
    }
    torch.save(content, tmp_path / "last.ckpt")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert same_tensors(parameters(load(tmp_path / "last.ckpt")), parameters_of_seed(config, 1))
    assert same_tensors(
        parameters(load(tmp_path / "last.ckpt", weights="raw")), parameters_of_seed(config, 0)
    )


def test_load_rejects_moving_average_of_other_network(tmp_path, config):
    shadow = [value.detach() for value in network(config, 1).parameters()]
    for wrong, message in (
        ({"shadow_params": shadow[:-1]}, "moving average has"),
        ({"shadow_params": shadow[::-1]}, "in the moving average, which belongs to another network"),
        ({"shadow_params": "none"}, "no list of tensors"),
        (None, "no moving average of its weights; ask for weights='raw'"),
    ):
        here = run(tmp_path, config, ema=wrong)
        with pytest.raises(ValueError, match=message):
            load(here)
    assert same_tensors(
        parameters(load(run(tmp_path, config, ema=None), weights="raw")), parameters_of_seed(config, 0)
    )


def test_load_raw_rejects_file_with_one_set_of_weights(tmp_path, config):
    with pytest.raises(ValueError, match="holds one set of weights and no raw ones"):
        load(folder(tmp_path, config), weights="raw")


def test_load_hdlm_checkpoint_from_folder_file_and_hub(tmp_path):
    published = load(folder(tmp_path / "published", EPSILON))
    own = tmp_path / "own"
    averaged = {name: value.detach() + 1 for name, value in published.network.named_parameters()}
    save_checkpoint(own, published, averaged=averaged)
    assert same_tensors(parameters(load(own)), averaged)
    raw = parameters_of_seed(EPSILON, 0)
    assert same_tensors(parameters(load(own, weights="raw")), raw)
    assert same_tensors(parameters(load(own / "raw.safetensors")), raw)
    assert same_tensors(parameters(load(own / "model.safetensors")), averaged)
    assert load(own).hyperschedules == published.hyperschedules
    found = inspect(own)
    assert found.card == "hdlm"
    assert found.blueprint.process == EpsilonHybrid(WORDS, 0.1)
    assert {file.name for file in found.files} == {"config.json", "model.safetensors"}
    publish(tmp_path / "cache", NAME, {file.name: file for file in own.iterdir()})
    for weights, expected in (("averaged", averaged), ("raw", raw)):
        hub = load(NAME, weights=weights, cache_dir=tmp_path / "cache", offline=True)
        assert same_tensors(parameters(hub), expected)
    shutil.move(own / "model.safetensors", own / "elsewhere.safetensors")
    with pytest.raises(ValueError, match=r"a folder with config\.json and model\.safetensors"):
        load(own / "elsewhere.safetensors")


def test_load_shipped_model_by_name():
    assert load("kjv-epsilon-4m").tokenizer_json
    assert inspect("kjv-epsilon-4m").card == "hdlm"


def test_load_without_config_names_the_option(tmp_path, config):
    whole = folder(tmp_path, config)
    (whole / "config.json").rename(tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"has no config.*config\.json nor .*config\.yaml.*as `config`"):
        load(whole)
    assert same_tensors(
        parameters(load(whole, config=tmp_path / "other.json")), parameters_of_seed(config, 0)
    )
    with pytest.raises(ValueError, match="there is no config"):
        load(whole, config=tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "nothing",
            "no folder or file nothing, and it is neither a model that ships with hdlm nor the id of a hub",
        ),
        ("a/b/c", "no folder or file"),
        (Path("some/folder"), r"no folder or file some/folder\. Give a folder"),
        ("runs/model.pth", r"no folder or file runs/model\.pth\. Give a folder"),
        ("/nonexistent", r"no folder or file /nonexistent\. Give a folder"),
        ("./nonexistent", r"no folder or file \./nonexistent\. Give a folder"),
    ],
)
def test_load_names_missing_source(source, message):
    with pytest.raises(ValueError, match=message):
        load(source)


def test_load_names_near_folder_and_asks_hub_beside_it(tmp_path, monkeypatch):
    """A folder with the name of an owner may hold one of its models, and another one is wanted."""
    from hdlm.hub import source

    def unreachable(name, **options):
        raise OSError(f"no network for {name}")

    (tmp_path / "runs" / "book").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(source, "files_on_hub", unreachable)
    near = r"^there is no folder or file runs/bok; did you mean `runs/book`\? From the hub"
    with pytest.raises(OSError, match=near + r".* no network for runs/bok"):
        load("runs/bok")
    with pytest.raises(ValueError, match=r"runs/bok/; did you mean `runs/book`\? Give a folder"):
        load("runs/bok/")


def test_load_names_folder_without_weights_and_unknown_file(tmp_path):
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(ValueError, match=r"has no weights: .*It holds: notes\.txt"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"notes\.txt is not a file of weights"):
        load(tmp_path / "notes.txt")


# -- the hub ----------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    use(monkeypatch, tmp_path / "cache")
    return tmp_path / "cache"


def published(config, seed=0):
    from safetensors.torch import save

    return {"config.json": json.dumps(config).encode(), "model.safetensors": save(tensors(config, seed))}


def test_load_repository_from_cache_offline(cache, config):
    publish(cache, NAME, published(config))
    publish(cache, NAME, published(config, 1), revision="v2")
    assert same_tensors(parameters(load(NAME)), parameters_of_seed(config, 0))
    assert same_tensors(parameters(load(NAME, revision="v2")), parameters_of_seed(config, 1))
    assert inspect(NAME).evidence.origin == NAME
    with pytest.raises(
        OSError, match=r"something, revision v3: .*not in the cache.*offline.*HF_HUB_OFFLINE=1"
    ):
        load(NAME, revision="v3")


def test_load_prefers_folder_to_repository(cache, tmp_path, monkeypatch, config):
    publish(cache, NAME, published(config))
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / NAME, config, tensors(config, 1))
    assert same_tensors(parameters(load(NAME)), parameters_of_seed(config, 1))


def test_load_repository_in_new_process(tmp_path):
    publish(tmp_path, NAME, published(GAMMA))
    code = f"import hdlm; print(type(hdlm.load({NAME!r}).denoiser.process).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "GammaHybrid"


def test_load_with_unreachable_hub_uses_cache_or_names_offline_mode(cache, tmp_path, monkeypatch, config):
    """A cached model loads. An uncached one gives an error soon, which names offline mode."""
    use(monkeypatch, cache, offline=False)

    def unreachable(self, *arguments, **options):
        assert options["timeout"] <= 30
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(OSError, match=r"Name or service not known.*work offline.*HF_HUB_OFFLINE=1") as caught:
        load(NAME)
    assert "\n" not in str(caught.value)
    publish(cache, NAME, published(config))
    assert same_tensors(parameters(load(NAME)), parameters_of_seed(config, 0))


def test_load_fetches_only_config_and_weights(cache, tmp_path, monkeypatch, config):
    use(monkeypatch, cache, offline=False)
    snapshot = publish(tmp_path / "remote", NAME, published(changed(config, tokenizer__model=None)))
    asked = {}

    def info(self, name, *, revision, timeout):
        there = (
            "config.json",
            "config.yaml",
            "model.safetensors",
            "pytorch_model.bin",
            "README.md",
            "run.py",
        )
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in there])

    def fetch(name, **options):
        asked.update(options, name=name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    load(NAME, revision="v1", cache_dir=cache, token="secret")
    assert asked["allow_patterns"] == ["config.json", "config.yaml", "model.safetensors"]
    assert (asked["name"], asked["revision"], asked["cache_dir"], asked["token"]) == (
        NAME,
        "v1",
        cache,
        "secret",
    )


def test_load_repository_with_incomplete_cache_names_missing_weights(cache, config):
    publish(cache, NAME, {"config.json": json.dumps(config).encode()})
    with pytest.raises(ValueError, match=f"{NAME} has no weights"):
        load(NAME)


# -- strictness -------------------------------------------------------------------------------------------


def replace_tensor(weights, name, value):
    if value is None:
        weights.pop(name)
    else:
        weights[name] = value
    return weights


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("blocks.1.mlp.0.bias", None, r"missing blocks\.1\.mlp\.0\.bias; unexpected nothing"),
        ("blocks.1.extra", torch.zeros(2), r"missing nothing; unexpected blocks\.1\.extra"),
        ("blocks.1.mlp.0.bias", torch.zeros(3), r"blocks\.1\.mlp\.0\.bias has shape \[3\], but .* needs \[32\]"),
        ("blocks.1.mlp.0.bias", torch.full((32,), torch.nan), r"blocks\.1\.mlp\.0\.bias holds numbers that are not"),
        ("blocks.1.mlp.0.bias", torch.full((32,), torch.inf), r"blocks\.1\.mlp\.0\.bias holds numbers that are not"),
        ("blocks.1.mlp.0.bias", torch.zeros(32, dtype=torch.long), r"blocks\.1\.mlp\.0\.bias is of type"),
        ("rotary_emb.inv_freq", torch.ones(2), "other frequencies than those of rotary positions"),
        ("vocab_embed.embedding", torch.zeros(WORDS, 8), r"`tokenizer\.tokens` 11 .* \[12, 8\], but .* is \[11, 8\]"),
        ("vocab_embed.embedding", torch.zeros(12, 6), r"`model\.hidden_size` 8 .* but .* is \[12, 6\]"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("pickled", [False, True])
def test_load_names_wrong_tensor(tmp_path, config, name, value, message, pickled):
    whole = folder(tmp_path, config, weights := replace_tensor(tensors(config), name, value))
    if pickled:
        (whole / "model.safetensors").unlink()
        torch.save(weights, whole / "pytorch_model.bin")
    with pytest.raises(ValueError, match=message):
        load(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__n_blocks": 3}, r"`model\.n_blocks` is 3, but its tensors are those of 2 blocks"),
        ({"model__n_blocks": 10**9}, r"`model\.n_blocks` is 1000000000"),
        ({"model__n_heads": 3}, "`hidden_size` must be an even multiple"),
        ({"model__length": "long"}, r"`model\.length` of its config must be a positive integer; got 'long'"),
        ({"model__cond_dim": 0}, r"`model\.cond_dim` of its config must be a positive integer"),
        ({"training__epsilon": None}, r"lacks `training\.epsilon`"),
        ({"training__epsilon": 2}, r"`epsilon` must lie in"),
        ({"annealing__type": "spiral"}, r"`annealing\.type` of its config must be one of block, simple"),
        ({"annealing__width": 99}, "`width` must lie in"),
        ({"type": "sideways"}, "must be one of aligned, shifted"),
        ({"model__use_timestep_embedding": True}, r"`model\.use_timestep_embedding` is true, but there is no tensor"),
        ({"annealing__attention__context_type": "none"}, r"annealing\.attention\.context_type` of its config must"),
    ],
)  # fmt: skip
def test_load_names_wrong_config_option(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load(folder(tmp_path, changed(EPSILON, **changes), tensors(EPSILON)))


def test_load_rejects_gamma_config_that_contradicts_tensors(tmp_path):
    for changes, message in (
        ({"model__use_timestep_embedding": False}, "use_timestep_embedding` is false, but there is a tensor sigma_map"),
        ({"model__transformer_sigma_conditioning": False}, "conditioning` is false, but there is a tensor blocks"),
        ({"graph__gamma": 7}, "`gamma` must lie in"),
        ({"graph__type": "uniform"}, r"embedding is \[11, 8\]"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            load(folder(tmp_path, changed(GAMMA, **changes), tensors(GAMMA)))


def test_load_keeps_and_reports_unknown_config_keys(tmp_path):
    more = {
        "hdlm__note": "x",
        "training__weight": "standard",
        "model__warm": {"start": "gpt2"},
        "noise__type": "a",
    }
    whole = folder(tmp_path, changed(EPSILON, **more))
    assert inspect(whole).blueprint.unknown == ("hdlm", "model.warm", "noise", "training.weight")
    loaded = load(whole)
    assert loaded.training["unknown"] == ["hdlm", "model.warm", "noise", "training.weight"]
    assert loaded.training["config"]["hdlm"] == {"note": "x"}
    save_checkpoint(tmp_path / "again", loaded)
    assert load(tmp_path / "again").training == loaded.training


def test_recognise_requires_exactly_one_card(tmp_path):
    whole = folder(tmp_path, changed(EPSILON, model_type="other"))
    with pytest.raises(
        ValueError, match=r"in no format that hdlm reads .*model_type 'other'.*vocab_embed|blocks"
    ):
        load(whole)
    evidence = inspect(folder(tmp_path, EPSILON)).evidence
    twice = (CARDS[0], *CARDS)
    with pytest.raises(
        ValueError, match="could be any of published epsilon-hybrid, published epsilon-hybrid"
    ):
        recognise(evidence, twice)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model": 3},
        {"graph": [], "model": {}},
        {"model_type": 7},
        {"tokenizer": "x", "model": {"name": {}}},
    ],
)
def test_cards_recognise_without_error_on_odd_evidence(config):
    for shapes in ({}, {"vocab_embed.embedding": ()}, {"": (1, 2)}):
        for card in CARDS:
            assert card.recognises(Evidence(config, shapes, "x")) in (True, False)


@pytest.mark.parametrize("row", [0, 4, WORDS])
def test_fill_moves_mask_row_to_the_end(tmp_path, row):
    weights = tensors(EPSILON)
    save_file(weights, tmp_path / "model.safetensors")
    stored = Safetensors(tmp_path / "model.safetensors")
    made = skeleton(network(EPSILON).config, stored)
    fill(made, stored, mask_row=row)
    order = [*range(row), *range(row + 1, WORDS + 1), row]
    for name, value in made.named_parameters():
        moved = name.startswith(("vocab_embed", "output_layer.linear"))
        assert torch.equal(value, weights[name][order] if moved else weights[name])
    with pytest.raises(ValueError, match="has 12 rows, so none of them is the mask's, 12"):
        fill(skeleton(network(EPSILON).config, stored), stored, mask_row=WORDS + 1)


def test_fill_rejects_incomplete_key_table(tmp_path):
    save_file(tensors(EPSILON), tmp_path / "model.safetensors")
    stored = Safetensors(tmp_path / "model.safetensors")
    made = skeleton(network(EPSILON).config, stored)
    names = {name: name for name, _ in made.named_parameters()}
    lacking = {name: key for name, key in names.items() if not name.startswith("vocab")}
    for table, message in (
        (lacking, r"lacks vocab_embed\.embedding; not parameters of the network: nothing"),
        ({**names, "other": "other"}, "lacks nothing; not parameters of the network: other"),
    ):
        with pytest.raises(ValueError, match=message):
            fill(made, stored, table)


# -- what they become -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annealing", "expected"),
    [
        ({"type": "block", "width": 4, "tau": 2}, (Block(LENGTH, 4, 2),)),
        ({"type": "block", "width": 4}, (Block(LENGTH, 4, 4),)),
        ({"type": "block", "width": 4, "tau": 2, "eval_tau": 8}, (Block(LENGTH, 4, 8), Block(LENGTH, 4, 2))),
        ({"type": "simple", "width": 4, "tau": 3}, (PublishedSlide(LENGTH, 4, 3),)),
        ({"type": "hybrid", "width": 4, "tau": 3}, (PublishedWave(LENGTH, 4, 3),)),
        ({"type": "none", "tau": 5}, (flat(LENGTH, 5),)),
        ({"type": "none", "tau": 5, "eval_tau": 7}, (flat(LENGTH, 7), flat(LENGTH, 5))),
        ({"type": "simple", "width": 4, "tau": 4}, (Slide(LENGTH, 4, 4),)),
        ({}, (flat(LENGTH, LENGTH),)),
    ],
)
def test_load_reads_hyperschedules_of_annealing_table(tmp_path, annealing, expected):
    assert load(folder(tmp_path, changed(EPSILON, annealing=annealing))).hyperschedules == expected


def test_load_builds_pieces_of_gamma_config(tmp_path):
    loaded = load(folder(tmp_path, GAMMA))
    outputs = loaded.denoiser.parameterization
    assert loaded.denoiser.process == GammaHybrid(WORDS, 0.05)
    assert isinstance(outputs, LogScore)
    assert outputs.scale_by_sigma
    assert outputs.blend_rate == 0.05
    assert loaded.noise_schedule == LogLinear(5e-3)
    other = changed(
        GAMMA,
        type="shifted",
        noise={"type": "geometric", "sigma_min": 1e-3, "sigma_max": 9.0},
        model__hybrid_sigma_embedding=False,
        graph={"type": "absorb"},
        annealing__attention={"context_type": "causal", "block_type": "causal"},
    )
    loaded = load(folder(tmp_path, other))
    assert isinstance(loaded.denoiser.parameterization, Shifted)
    assert isinstance(loaded.denoiser.parameterization.inner, LogScore)
    assert loaded.denoiser.parameterization.inner.blend_rate is None
    assert loaded.denoiser.process == Absorbing(WORDS)
    assert loaded.noise_schedule == Geometric(1e-3, 9.0)
    assert (loaded.context, loaded.active) == ("causal", "causal")


def test_load_shifted_config_gives_shifted_parameterization(tmp_path):
    loaded = load(folder(tmp_path, changed(EPSILON, type="shifted")))
    assert loaded.denoiser.parameterization == Shifted(Mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_load_casts_parameters_to_dtype(tmp_path, config, dtype):
    loaded = load(folder(tmp_path, config), dtype=dtype)
    assert {parameter.dtype for parameter in loaded.network.parameters()} == {dtype}
    assert torch.equal(loaded.network.rotary_emb.inv_freq, network(config).rotary_emb.inv_freq)
    with pytest.raises(ValueError, match="`dtype` must be one of"):
        load(tmp_path, dtype=torch.int8)


def test_load_converts_bfloat16_weights_to_float32(tmp_path, config):
    half = {name: value.bfloat16() for name, value in tensors(config).items()}
    loaded = parameters(load(folder(tmp_path, config, half)))
    for name, value in loaded.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, half[name].float())


def test_loaded_weights_survive_change_of_file(tmp_path, config):
    whole = folder(tmp_path / "a", config)
    loaded = load(whole)
    (whole / "model.safetensors").write_bytes(b"")
    assert same_tensors(parameters(loaded), parameters_of_seed(config, 0))


def test_training_loaded_weights_does_not_change_file(tmp_path):
    """The weights are memory-mapped, and training must not write to the file."""
    here = run(tmp_path, EPSILON)
    file = here / "checkpoints" / "checkpoint_3.pth"
    before = file.read_bytes()
    loaded = load(here)
    loaded.network(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    with torch.no_grad():
        for parameter in loaded.network.parameters():
            parameter.sub_(1.0)
    assert file.read_bytes() == before


# -- tokenizers -------------------------------------------------------------------------------------------


def letters(*more: str, size: int = WORDS) -> str:
    """A `tokenizer.json` with `size` words: end-of-text and letters, followed by the words in `more`."""
    words = ["<|endoftext|>", *map(chr, range(97, 96 + size)), *more]
    model = {"type": "BPE", "vocab": {word: id for id, word in enumerate(words)}, "merges": []}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = [
        {"id": words.index(word), "content": word, "special": True, **plain} for word in (words[0], *more)
    ]
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return json.dumps({"version": "1.0", "added_tokens": special, "pre_tokenizer": split, "model": model})


def test_load_reads_tokenizer_beside_weights(tmp_path):
    whole = folder(tmp_path, EPSILON)
    assert load(whole).tokenizer_json is None
    (whole / "tokenizer.json").write_text(letters(), encoding="utf-8")
    assert load(whole).tokenizer.encode("abc") == [1, 2, 3]
    assert (load(whole).vocabulary.bos, load(whole).vocabulary.eos) == (0, 0)
    assert "tokenizer.json" in {file.name for file in inspect(whole).files}


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe", "is damaged"), (letters(size=9).encode(), "has 9 words, the network 11")],
    ids=["rubbish", "another size"],
)
def test_load_rejects_tokenizer_of_other_size(tmp_path, content, message):
    whole = folder(tmp_path, EPSILON)
    (whole / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(whole)


def test_load_excludes_mask_token_from_words(tmp_path):
    whole = folder(tmp_path, EPSILON)
    (whole / "tokenizer.json").write_text(letters("[MASK]"), encoding="utf-8")
    assert load(whole).tokenizer.vocabulary.num_words == WORDS


def test_load_finds_tokenizer_named_by_config(tmp_path, cache, monkeypatch):
    """A missing tokenizer of the config is not an error, and the network is used only for weights from the hub."""
    asked = []

    def find(source, *, cache_dir, token, offline):
        asked.append((source, offline))
        if source == "absent":
            raise ValueError("no such tokenizer")
        return Tokenizer.from_json(letters())

    monkeypatch.setattr(hdlm.data, "find_tokenizer", find)
    whole = folder(tmp_path / "model", EPSILON)
    assert load(whole).tokenizer_json
    assert load(whole, tokenizer="mine").tokenizer_json
    assert load(folder(tmp_path / "b", changed(EPSILON, tokenizer__model="absent"))).tokenizer_json is None
    with pytest.raises(ValueError, match="no such tokenizer"):
        load(whole, tokenizer="absent")
    assert asked == [("gpt2", True), ("mine", False), ("absent", True), ("absent", False)]
    for name in ("../other", "/etc/passwd", "a/b/c", ""):
        assert load(folder(tmp_path / "c", changed(EPSILON, tokenizer__model=name))).tokenizer_json is None
    assert len(asked) == 4


# -- configs ----------------------------------------------------------------------------------------------


def test_resolve_interpolations_replaces_references_only(monkeypatch):
    monkeypatch.setenv("HDLM_SECRET", "secret")
    config = {
        "a": {"b": 3, "c": "${a.b}", "d": "x${a.c}y", "e": "${a.nothing}", "f": "${oc.env:HDLM_SECRET}"},
        "list": ["${a.b}", {"g": "${list.0}"}],
        "table": "${a}",
        "none": None,
        "h": "${none}",
    }
    assert resolve_interpolations(config) == {
        "a": {"b": 3, "c": 3, "d": "x3y", "e": "${a.nothing}", "f": "${oc.env:HDLM_SECRET}"},
        "list": [3, {"g": 3}],
        "table": "${a}",
        "none": None,
        "h": None,
    }


def test_resolve_interpolations_rejects_circles_and_bombs():
    with pytest.raises(ValueError, match="in a circle: b -> a -> b"):
        resolve_interpolations({"a": "${b}", "b": "${a}"})
    bomb = {"k0": "x" * 10} | {f"k{i}": f"${{k{i - 1}}}" * 10 for i in range(1, 40)}
    with pytest.raises(ValueError, match="more than 10000 characters"):
        resolve_interpolations(bomb)


def test_read_config_keeps_yaml_numbers_and_dates(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("a: 1e-4\nb: 2E3\nc: 2024-01-02\nd: 1.5\ne: 7\nf: 0.1e2\ng: x1e4\n")
    assert read_config(file) == {
        "a": 1e-4, "b": 2000.0, "c": "2024-01-02", "d": 1.5, "e": 7, "f": 10.0, "g": "x1e4",
    }  # fmt: skip


# -- cost -------------------------------------------------------------------------------------------------

LARGE = changed(
    EPSILON,
    tokenizer__tokens=50257,
    model={"hidden_size": 768, "n_blocks": 12, "n_heads": 12, "length": 1024, "cond_dim": 128},
    annealing__width=16,
)
MEASURE = """
import json, sys, time
from pathlib import Path
from types import SimpleNamespace
import hdlm
path, size = Path(sys.argv[1]), int(sys.argv[2])
hdlm.load(sys.argv[3])
begin = time.process_time()
with path.open("rb", buffering=0) as file:
    while file.read(2**24):
        pass
reading = time.process_time() - begin
def memory(which):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))
before, begin = memory("VmRSS"), time.process_time()
loaded = hdlm.load(sys.argv[4])
seconds = time.process_time() - begin
print(json.dumps({"share": (memory("VmHWM") - before) / size, "beyond": seconds - reading, "seconds": seconds}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("kind", ["folder", "own", "run"])
def test_load_memory_and_time_are_bounded(tmp_path, kind):
    """170M parameters: at most 1.3 times their bytes, and at most 2 s of work more than reading the file."""
    warm = folder(tmp_path / "warm", EPSILON)
    here, file = tmp_path / "large", tmp_path / "large" / "model.safetensors"
    if kind == "run":
        run(here, LARGE)
        file = here / "checkpoints" / "checkpoint_3.pth"
    else:
        folder(here, LARGE)
        if kind == "own":
            save_checkpoint(here, load(here))
    size = 4 * sum(parameter.numel() for parameter in network(LARGE).parameters())
    assert size > 4 * 160e6
    command = [sys.executable, "-c", MEASURE, str(file), str(size), str(warm), str(here)]
    done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(kind, done)
    assert 0.9 < done["share"] < 1.3
    assert done["beyond"] < 2
