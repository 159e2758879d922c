"""Published weights of 2026 in their own formats: logits, greedy text and likelihood are those of the published code.

`golden/modern` has one tiny checkpoint for each format; its README files say how the arrays were made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import hdlm
from hdlm.checkpoint import Checkpoint
from hdlm.cli import main
from hdlm.evaluation.likelihood.estimator import Likelihood
from hdlm.evaluation.likelihood.windows import Window
from hdlm.hub.card import Blueprint
from hdlm.noise_schedule import Interpolated
from hdlm.objective import Corruption, MaskedCrossEntropy
from hdlm.regime import Regime
from hdlm.sampling import Execution, Prompt, Step, algorithm, sample
from hdlm.sampling.base import Transform
from hdlm.sampling.frame import Frame
from hdlm.sampling.steps.confidence import ByConfidence, Measure
from hdlm.sharing.decoder_layout import decoder_layout
from hdlm.sharing.export import export
from hdlm.training import NextToken

Transforms = Sequence[Transform]
inspect = import_module("hdlm.hub.load").inspect

CAUSAL = ("gpt2", "gpt2_hub", "llama", "llama_bf16", "llama_transformers5", "qwen2", "qwen3", "smollm")
DIFFUSION: dict[str, dict[str, Any]] = {
    "llada": {},
    "llada_switches": {},
    "dream": {},
    "sdar": {},
    "fast_dllm_v2": {},
    "diffugpt": {},
    "diffullama": {"mask_id": 11},
    "a2d_llama": {},
    "a2d_qwen3": {},
}
FOLDERS = {**{f"causal/{name}": {} for name in CAUSAL}, **DIFFUSION}


WRONG: tuple[object, ...] = (None, "x", -1, 3.5, {})


def damaged(table: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Copies of a config in which one value is missing or wrong."""
    for key, value in table.items():
        yield {name: other for name, other in table.items() if name != key}
        yield from (table | {key: wrong} for wrong in WRONG)
        if key == "text_config":
            yield from (table | {key: inner} for inner in damaged(value))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FOLDERS, "diffusion_gemma"])
def test_damaged_configs_are_read_or_refused_with_a_message(shared: Path, tmp_path: Path, name: str) -> None:
    """No value of a config, however wrong, ends in another error than a `ValueError`."""
    folder = shared / "golden" / "modern" / name
    for file in folder.iterdir():
        if file.name != "config.json":
            (tmp_path / file.name).symlink_to(file)
    for config in damaged(json.loads((folder / "config.json").read_text())):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with contextlib.suppress(ValueError):
            assert inspect(tmp_path, **FOLDERS.get(name, {})).blueprint


@pytest.fixture(scope="module", params=FOLDERS)
def golden(request: pytest.FixtureRequest, shared: Path) -> tuple[Path, dict[str, Any]]:
    return shared / "golden" / "modern" / request.param, FOLDERS[request.param]


def ours(ids: Tensor, blueprint: Blueprint) -> Tensor:
    """Ids of a file as ids here, where the mask is the last."""
    row = blueprint.mask_row
    if row is None:
        return ids
    return torch.where(ids == row, blueprint.vocabulary.mask_id, torch.where(ids > row, ids - 1, ids))


def theirs(logits: Tensor, blueprint: Blueprint) -> Tensor:
    """Logits in the order of the rows of a file."""
    row = blueprint.mask_row
    if blueprint.adds_mask:
        return logits[..., :-1]
    return (
        logits if row is None else torch.cat([logits[..., :row], logits[..., -1:], logits[..., row:-1]], -1)
    )


def masks(name: str, folder: Path, length: int) -> Tensor | None:
    """Who attends to whom for a stored array."""
    at = torch.arange(length)
    if "block" in name:
        width = int(name.partition("block")[2].partition("_")[0])
        return (at[:, None] // width >= at[None] // width)[None]
    return (at[:, None] >= at[None])[None] if folder.parent.name == "causal" and name == "logits" else None


@torch.no_grad()
def test_logits(golden: tuple[Path, dict[str, Any]]) -> None:
    folder, options = golden
    model, blueprint = hdlm.load(folder, **options), inspect(folder, **options).blueprint
    arrays = np.load(folder / "io.npz")
    names = [name for name in arrays.files if name.startswith("logits") and name != "logits_bf16"]
    assert names
    for name in names:
        expected = torch.from_numpy(arrays[name]).float()
        ids = torch.from_numpy(arrays["ids"][: len(expected)]).long()
        logits = model.network(ours(ids, blueprint), attention=masks(name, folder, ids.shape[1]))
        torch.testing.assert_close(theirs(logits, blueprint), expected, atol=1e-4, rtol=0)


def test_no_key_of_a_published_config_is_unknown(golden: tuple[Path, dict[str, Any]]) -> None:
    folder, options = golden
    assert inspect(folder, **options).blueprint.unknown == ()


def test_text_survives_the_tokenizer(golden: tuple[Path, dict[str, Any]]) -> None:
    folder, options = golden
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("this checkpoint has no tokenizer")
    model = hdlm.load(folder, **options)
    text = "First Citizen: we are accounted poor citizens"
    ids = model.tokenizer.encode(text)
    assert max(ids) < model.vocabulary.num_words
    assert model.tokenizer.decode(ids) == text


@pytest.fixture(params=CAUSAL)
def causal(request: pytest.FixtureRequest, shared: Path) -> tuple[Checkpoint, Any]:
    folder = shared / "golden" / "modern" / "causal" / request.param
    return hdlm.load(folder), np.load(folder / "io.npz")


@pytest.mark.parametrize("width", [None, 1, 5])
def test_greedy_text_of_a_causal_model(causal: tuple[Checkpoint, Any], width: int | None) -> None:
    """Token by token through the sampler and the exact cache, and by speculative sampling."""
    model, arrays = causal
    expected = torch.from_numpy(arrays["greedy"]).long()
    given, length = 8, expected.shape[1]
    canvas = expected.clone()
    canvas[:, given:] = model.vocabulary.mask_id
    prompt = Prompt(canvas, torch.arange(length).lt(given).expand(len(expected), -1))
    written = sample(
        model.denoiser,
        model.regime(hdlm.autoregressive(length)),
        algorithm("original", model.denoiser.process) if width is None else hdlm.Speculative(width),
        num_sequences=len(expected),
        prompt=prompt,
        transforms=(hdlm.TopK(1),),
    )
    assert written.tokens.tolist() == expected.tolist()
    assert written.num_evaluations <= length - given
    assert written.num_evaluations == length - given or width == 5


def test_a_mask_that_nothing_names_must_be_given(shared: Path) -> None:
    """DiffuLLaMA is a Llama folder; without `mask_id` it is read as a causal model."""
    folder = shared / "golden" / "modern" / "diffullama"
    assert inspect(folder).card == "causal"
    assert inspect(folder, mask_id=11).card == "DiffuLLaMA"


def test_a_mask_that_is_nowhere_is_an_error_that_names_the_option(shared: Path, tmp_path: Path) -> None:
    source = shared / "golden" / "modern" / "fast_dllm_v2"
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(source / name)
    with pytest.raises(ValueError, match="`mask_id`"):
        hdlm.load(tmp_path)


def _flat(
    shared: Path, name: str, case: str, step: Step, *, guidance: float = 0.0, options: Transforms = ()
) -> None:
    """A recorded generation on a full canvas, step by step."""
    folder = shared / "golden" / "modern" / name
    model, blueprint = hdlm.load(folder), inspect(folder).blueprint
    arrays, settings = np.load(folder / "io.npz"), json.loads((folder / "cases.json").read_text())[case]
    canvases = ours(torch.from_numpy(arrays[f"gen_{case}_canvas"]).long(), blueprint)
    length, steps = canvases.shape[2], settings["steps"]
    given = arrays[f"gen_{case}_prompt"].shape[1]
    fixed = torch.arange(length).lt(given)[None]
    denoiser = hdlm.Guided(model.denoiser, fixed, guidance) if guidance else model.denoiser
    ends = 1e-3 if name == "dream" else 0.0  # noise of Dream falls to 1e-3 on even steps
    noise = Interpolated(tuple(ends + (1 - ends) * k / steps for k in range(1, steps + 1)))
    frames: list[Frame] = []
    sample(
        denoiser,
        Regime(hdlm.flat(length, steps), noise, model.context),
        step,
        num_sequences=len(canvases[0]),
        prompt=Prompt(canvases[0], fixed.expand(len(canvases[0]), -1)),
        transforms=options,
        execution=Execution(together=True),
        watch=frames.append,
    )
    assert [frame.after.tolist() for frame in frames] == canvases[1:].tolist()


@pytest.mark.parametrize(
    ("case", "block", "guidance"),
    [("full", None, 0.0), ("uneven", None, 0.0), ("blocks", 8, 0.0), ("cfg", 6, 1.5)],
)
def test_generation_of_llada(shared: Path, case: str, block: int | None, guidance: float) -> None:
    step = ByConfidence(quota="even", greedy=True, block=block)
    _flat(shared, "llada", case, step, guidance=guidance)


@pytest.mark.parametrize(
    ("case", "measure", "options"),
    [
        ("maskgit_plus", "probability", ()),
        ("more_steps_than_tokens", "probability", ()),
        ("topk_margin", "margin", ()),
        ("entropy", "entropy", ()),
        ("entropy_top_p", "entropy", (hdlm.TopP(0.9),)),
        ("entropy_top_k", "entropy", (hdlm.TopK(20),)),
    ],
)
def test_generation_of_dream(shared: Path, case: str, measure: Measure, options: Transforms) -> None:
    _flat(shared, "dream", case, ByConfidence(measure, "truncated", greedy=True), options=options)


@pytest.mark.parametrize("case", ["static", "static_two_at_once", "sequential", "short_prompt"])
def test_generation_of_sdar(shared: Path, case: str) -> None:
    """In blocks behind the exact cache, which saves the calls that the published code makes to fill its cache."""
    folder = shared / "golden" / "modern" / "sdar"
    model, blueprint = hdlm.load(folder), inspect(folder).blueprint
    arrays, settings = np.load(folder / "io.npz"), json.loads((folder / "cases.json").read_text())[case]
    prompt, out = (
        ours(torch.from_numpy(arrays[f"gen_{case}_{name}"]).long(), blueprint).flatten()
        for name in ("prompt", "out")
    )
    width, length = settings["block_length"], len(out)
    assert length % width == 0
    canvas = out.clone()
    canvas[len(prompt) :] = model.vocabulary.mask_id
    measure: Measure = "position" if settings["remasking_strategy"] == "sequential" else "probability"
    written = sample(
        model.denoiser,
        model.regime(hdlm.Block(length, width, settings["denoising_steps"])),
        ByConfidence(measure, "even", greedy=True),
        prompt=Prompt(canvas[None], torch.arange(length).lt(len(prompt))[None]),
    )
    assert written.tokens[0].tolist() == out.tolist()
    assert written.num_evaluations < len(arrays[f"gen_{case}_block_inputs"])


@pytest.mark.parametrize("name", CAUSAL)
def test_likelihood_of_causal_model_is_that_of_transformers(shared: Path, name: str) -> None:
    """Step 0 of a conversion: along an autoregressive hyperschedule the bound is the log-likelihood."""
    folder = shared / "golden" / "modern" / "causal" / name
    model, arrays = hdlm.load(folder), np.load(folder / "io.npz")
    ids = torch.from_numpy(arrays["ids"]).long()
    measure = Likelihood(model.denoiser, model.regime(hdlm.autoregressive(ids.shape[1])))
    nats = measure.nats([Window(tuple(row), given=1) for row in ids.tolist()])
    torch.testing.assert_close(-nats, torch.from_numpy(arrays["logprob_sum"]), atol=0, rtol=1e-5)


@pytest.mark.parametrize("part", ["two streams", "next token"])
@pytest.mark.parametrize("name", CAUSAL)
def test_gradients_of_causal_model_are_those_of_transformers(shared: Path, name: str, part: str) -> None:
    """Step 0 of a conversion moves every weight as the causal model's own loss does, and not the mask."""
    folder = shared / "golden" / "modern" / "causal" / name
    model, arrays = hdlm.load(folder), np.load(folder / "io.npz")
    ids = torch.from_numpy(arrays["ids"]).long()
    rows, length = ids.shape
    if part == "next token":
        loss = NextToken(rows).loss(model.denoiser, ids, torch.zeros(rows, 1), torch.zeros(ids.shape))
    else:
        regime = model.regime(hdlm.autoregressive(length))
        corruption = Corruption(model.denoiser.process, regime, continuous=False, num_given=1)
        canvas = corruption(
            ids, torch.zeros(rows, corruption.num_times).double(), torch.zeros(ids.shape).double()
        )
        loss = MaskedCrossEntropy("inverse", "tokens").mean(model.denoiser, canvas)
    torch.testing.assert_close(
        loss.detach().double(), torch.tensor(arrays["loss"]).double(), atol=0, rtol=1e-5
    )
    loss.backward()
    for row_table in model.network.token_rows:
        parameter = dict(model.network.named_parameters()).get(row_table)
        assert parameter is None or not parameter.grad[-1].any()
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.copy_(parameter.grad)
    gradients = decoder_layout(model).tensors  # under the names of the file
    order = json.loads((folder / "facts.json").read_text())["notes"]["grad_norms order"]
    norms = torch.stack(
        [gradients[key.removeprefix("transformer.") if key not in gradients else key].norm() for key in order]
    )
    torch.testing.assert_close(norms.double(), torch.from_numpy(arrays["grad_norms"]), atol=0, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "llama"])
def test_causal_model_is_finetuned_into_block_diffusion_model(
    shared: Path, tmp_path: Path, name: str
) -> None:
    model = hdlm.load(shared / "golden" / "modern" / "causal" / name)
    trained = hdlm.finetune(
        model,
        ["First Citizen: we are accounted poor citizens. " * 40] * 4,
        output=tmp_path / "run",
        steps=2,
        hyperschedule=hdlm.Block(16, 4, 4),
        progress=False,
    )
    assert trained.network.config == dataclasses.replace(model.network.config)
    assert trained.denoiser.parameterization == model.denoiser.parameterization
    weight = "blocks.0.qkv.weight"
    assert not torch.equal(trained.network.state_dict()[weight], model.network.state_dict()[weight])
    (passage,) = trained.generate("First", length=16, seed=0, progress=False)
    assert len(passage.tokens) == 16


def test_a_decoder_goes_through_transformers(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transformers import AutoModel

    import hdlm.integrations.transformers

    model = hdlm.load(shared / "golden" / "modern" / "dream")
    hdlm.save_pretrained(model, tmp_path / "dream")
    loaded = AutoModel.from_pretrained(tmp_path / "dream")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = model.network(ids)
        torch.testing.assert_close(loaded.model(ids), expected, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("name", "array", "case"),
    [
        ("llada", "dllm_ragged", "dllm_ragged"),
        ("llada", "dllm_cfg", "dllm_cfg"),
        ("a2d_qwen3", "mdlm_ragged", "mdlm_ragged"),
        ("a2d_qwen3", "mdlm_cfg", "mdlm_cfg"),
        ("a2d_llama", "mdlm_ragged", "mdlm_ragged"),
    ],
)
def test_generation_of_dllm_for_prompts_of_unequal_length(
    shared: Path, name: str, array: str, case: str
) -> None:
    """The published sampler pads the prompts of a batch; each alone gives the same text here."""
    folder = shared / "golden" / "modern" / name
    model, blueprint = hdlm.load(folder), inspect(folder).blueprint
    arrays, settings = np.load(folder / "io.npz"), json.loads((folder / "cases.json").read_text())[case]
    canvases = ours(torch.from_numpy(arrays[f"{array}_canvas"]).long(), blueprint)
    blocks = -(-settings["max_new_tokens"] // settings["block_size"])
    steps = blocks * -(-settings["steps"] // blocks)
    for row, given in enumerate(arrays[f"{array}_lengths"].tolist()):
        length = given + settings["max_new_tokens"]
        canvas, expected = canvases[0, row, :length], canvases[-1, row, :length]
        fixed = torch.arange(length).lt(given)[None]
        guidance = settings.get("cfg_scale", 0.0)
        written = sample(
            hdlm.Guided(model.denoiser, fixed, guidance) if guidance else model.denoiser,
            model.regime(hdlm.flat(length, steps)),
            ByConfidence(quota="nearest", greedy=True, block=settings["block_size"]),
            prompt=Prompt(canvas[None], fixed),
        )
        assert written.tokens[0].tolist() == expected.tolist()


def _file_of(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def test_export_writes_layout_of_format(golden: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Names, shapes and numbers of every tensor, and the configuration, are those of the published file."""
    folder, options = golden
    export(hdlm.load(folder, **options), tmp_path / "exported")
    published, written = _file_of(folder), _file_of(tmp_path / "exported")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in written.items()}
    if folder.name == "gpt2_hub":  # without the prefix, and with the causal masks that nobody reads
        published = {name: tensor for name, tensor in published.items() if not name.endswith(".attn.bias")}
        written = bare
    assert written.keys() == published.keys()
    for name, tensor in published.items():
        assert torch.equal(written[name], tensor.float()), name
    config = json.loads((folder / "config.json").read_text())
    assert json.loads((tmp_path / "exported" / "config.json").read_text()) == config
    again = hdlm.load(tmp_path / "exported", **options)
    original = hdlm.load(folder, **options)
    for name, parameter in original.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], parameter), name
    if original.tokenizer_json is not None:
        text = "First Citizen: we are accounted poor citizens"
        assert again.tokenizer.encode(text) == original.tokenizer.encode(text)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "qwen3", "smollm"])
def test_converted_model_is_exported_to_transformers(shared: Path, tmp_path: Path, name: str) -> None:
    """A causal model that was finetuned with blocks; its export gives the logits of the network in transformers."""
    transformers = pytest.importorskip("transformers")
    model = hdlm.finetune(
        hdlm.load(shared / "golden" / "modern" / "causal" / name),
        ["First Citizen: we are accounted poor citizens. " * 40] * 4,
        output=tmp_path / "run",
        steps=1,
        hyperschedule=hdlm.Block(16, 4, 4),
        progress=False,
    )
    export(model, tmp_path / "exported")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    ids = torch.arange(14)[None]
    with torch.no_grad():
        expected = model.network(ids, attention=torch.ones(1, 14, 14, dtype=torch.bool).tril())
        torch.testing.assert_close(loaded(ids).logits, expected, atol=1e-4, rtol=0)
    assert loaded.config.mask_token_id == model.vocabulary.mask_id == loaded.config.vocab_size - 1
    again = hdlm.load(tmp_path / "exported")
    assert again.regime() == model.regime()
    assert again.vocabulary == model.vocabulary
    assert again.denoiser.process == model.denoiser.process
    assert again.denoiser.parameterization == model.denoiser.parameterization
    assert again.hyperschedules == model.hyperschedules == (hdlm.Block(16, 4, 4),)
    export(again, tmp_path / "twice")
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "twice" / file).read_bytes() == (tmp_path / "exported" / file).read_bytes(), file


@pytest.mark.parametrize("name", ["causal/qwen3", "dream"])
def test_command_trains_checkpoint_of_others_with_its_own_network(
    shared: Path, tmp_path: Path, name: str
) -> None:
    """A recipe file says only what is to change: here the hyperschedule, the context and the batch size."""
    text, recipe = tmp_path / "text.txt", tmp_path / "block.toml"
    text.write_text("First Citizen: we are accounted poor citizens. " * 60)
    recipe.write_text(
        '[[mixture]]\nhyperschedule = { type = "Block", width = 4, num_levels = 4 }\ntwo_stream = false\n'
        "[data]\ncontext = 16\n[run]\nbatch_size = 2\n"
    )
    source = shared / "golden" / "modern" / name
    words = ["--from", source, "--recipe", recipe, "--text", text, "--output", tmp_path / "run", "--steps", 1]
    assert main(["train", *map(str, words)]) == 0
    trained, before = hdlm.load(tmp_path / "run"), hdlm.load(source)
    assert trained.network.config == before.network.config
    assert trained.denoiser.parameterization == before.denoiser.parameterization
    assert trained.hyperschedules == (hdlm.Block(16, 4, 4),)


def test_tokenizer_larger_than_network_is_refused(shared: Path) -> None:
    folder = shared / "golden" / "modern"
    with pytest.raises(ValueError, match="the tokenizer has 333 words, the network 319"):
        hdlm.load(folder / "llada_switches", tokenizer=folder / "llada" / "tokenizer.json")
