"""Every option of a recipe acts: a short run with another value gives other results.

`ACTS` has another value for each option and the other options that it needs. An option without an entry fails.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hdlm.evaluation.during_training import Observer
from hdlm.package_data import recipes
from hdlm.strict_config import options_of
from hdlm.training import Recipe, Session, StopRequest, build_setup
from hdlm.training.recipe import MixturePart
from hdlm.training.short_form import SHORT_OPTIONS
from hdlm.training.text import refuse_idle

CPU = torch.device("cpu")
SCORES = {"network.told_noise": True, "objective.type": "ScoreEntropy", "objective.cross_entropy": 1.0}
GAMMA = {"process.type": "GammaHybrid", "process.gamma": 0.1}
WATCHED = {"watch.validate_every": 2, "watch.sample_every": 2}
MANY = {"data.corpus": ["rows.jsonl"]}
BLOCK = {"type": "Block", "width": 4, "num_levels": 4}
CHAT = {"data.corpus": ["rows.jsonl"], "data.context": 96}
ADAPTERS = {"network.type": "Decoder", "lora.rank": 2}
TWO_PARTS = {"mixture.1.hyperschedule": BLOCK | {"width": 8}}

ACTS: dict[str, tuple[object, dict[str, Any]]] = {
    "data.corpus": (["other.txt"], {}),
    "data.vocabulary": (264, {}),
    "data.validation": (0.2, {}),
    "data.context": (8, {}),
    "data.tokenizer": ("tokenizer", {"data.vocabulary": 258}),
    "data.validation_corpus": (["other.txt"], WATCHED | {"data.validation": 0.025}),
    "data.key": ("body", {"data.corpus": ["rows.jsonl"]}),
    "data.cache": ("cache", MANY),
    "data.streaming": (True, MANY),
    "data.format": ("messages", CHAT),
    "data.chat_template": ("chat.jinja", CHAT | {"data.format": "messages"}),
    "data.fill": ("end", CHAT | {"data.format": "messages"}),
    "network.hidden_size": (8, {}),
    "network.num_blocks": (2, {}),
    "network.num_heads": (1, {}),
    "network.dropout": (0.5, {}),
    "network.mlp_ratio": (2, {}),
    "network.type": ("Decoder", {}),
    "network.decoder": ({"qk_norm": True}, {"network.type": "Decoder"}),
    "network.condition_blocks": (False, {"network.told_noise": True}),
    "network.condition_output": (True, {"network.told_noise": True}),
    "network.shifted": (True, {}),
    "network.told_noise": (True, {}),
    "network.cond_dim": (8, {"network.told_noise": True}),
    "network.blend": (True, SCORES | GAMMA),
    "network.scale_by_sigma": (False, SCORES),
    "network.context": ("causal", {"network.num_blocks": 2}),
    "network.active": ("causal", {"network.num_blocks": 2}),
    "network.separate_documents": (True, MANY),
    "process.type": ("GammaHybrid", {}),
    "process.epsilon": (0.3, {}),
    "process.gamma": (0.5, GAMMA),
    "process.noise_schedule": ({"type": "Cosine"}, {"mixture.0.continuous": True}),
    "objective.type": ("NELBO", {}),
    "objective.unmasked": (0.5, {}),
    "objective.unmasked_weight": ("published_code", {}),
    "objective.score_entropy": ("published_code", SCORES | GAMMA),
    "objective.max_weight": (1.5, {}),
    "objective.diffusion": (0.0, SCORES),
    "objective.cross_entropy": (0.5, SCORES),
    "mixture.0.hyperschedule": (BLOCK | {"num_levels": 2}, {}),
    "mixture.0.share": (9.0, TWO_PARTS),
    "mixture.0.two_stream": (False, {}),
    "mixture.0.continuous": (True, {}),
    "mixture.0.batch_scale": (2, {}),
    "mixture.0.begins": (0.5, TWO_PARTS),
    "mixture.0.ends": (0.5, TWO_PARTS),
    "mixture.0.opens": (1.0, {}),
    "mixture.0.time": ("sequence", {}),
    "mixture.0.complementary": (True, {"process.epsilon": 0.0}),
    "mixture.0.border": ("noisy", {"network.shifted": True}),
    "mixture.0.least_noise": (0.5, {}),
    "lora.rank": (2, {"network.type": "Decoder"}),
    "lora.alpha": (4, ADAPTERS),
    "lora.dropout": (0.5, ADAPTERS),
    "lora.layers": (["qkv"], ADAPTERS),
    "lora.embeddings": (True, ADAPTERS),
    "warm_start.share": (0.5, {}),
    "warm_start.batch_scale": (1, {"warm_start.share": 0.5}),
    "optimizer.name": ("adamw", {}),
    "optimizer.matrix_rate": (0.1, {}),
    "optimizer.embedding_rate": (0.1, {}),
    "optimizer.head_rate": (0.1, {}),
    "optimizer.weight_decay": (0.5, {}),
    "optimizer.decay": ("all", {"optimizer.weight_decay": 0.5}),
    "optimizer.muon_scale": ("match_rms_adamw", {}),
    "optimizer.schedule": ("cosine", {}),
    "optimizer.warmup": (0.5, {}),
    "optimizer.floor": (0.5, {}),
    "optimizer.clip": (0.01, {}),
    "optimizer.ema": (0.1, {}),
    "optimizer.beta1": (0.1, {}),
    "optimizer.beta2": (0.1, {}),
    "optimizer.eps": (0.1, {}),
    "run.steps": (5, {}),
    "run.batch_size": (2, {}),
    "run.precision": ("bf16", {}),
    "run.save_steps": (1, {"run.keep": 9}),
    "run.keep": (1, {"run.save_steps": 1}),
    "run.seed": (1, {}),
    "watch.log_every": (2, {}),
    "watch.validate_every": (2, {}),
    "watch.validation_windows": (2, WATCHED),
    "watch.replicates": (3, WATCHED),
    "watch.sample_every": (2, {}),
    "watch.samples": (2, WATCHED),
}
"""Another value of each option, and the options that let it act."""
ELSEWHERE = {
    "network.checkpoint_activations": "memory: tests/unit/test_lean.py",
    "run.minutes": "ends a run: tests/unit/test_training.py",
    "run.accumulation": "memory: tests/unit/test_training.py",
    "run.compile": "time: tests/unit/test_training.py",
    "run.save_every": "the clock: tests/unit/test_training.py",
    "watch.batch_size": "memory: tests/unit/test_watching.py",
    "watch.judge": "needs a model: tests/unit/test_watching.py",
    "watch.judge_batch_size": "memory",
    "watch.trackers": "needs a tracker: tests/unit/test_watching.py",
    "watch.project": "names a run there: tests/unit/test_watching.py",
    "description": "is for people",
}
"""Options whose effect is not visible in the results of a run."""


def _option_names() -> set[str]:
    tables = {name.partition(".")[0] for name in options_of(Recipe) if "." in name}
    mixture = {f"mixture.0.{option.name}" for option in dataclasses.fields(MixturePart)}
    pieces = {"mixture", "process", "noise_schedule", "parameterization", "objective"}
    return {name for name in options_of(Recipe) if name not in tables | pieces} | mixture | set(SHORT_OPTIONS)


def test_every_recipe_option_has_a_case() -> None:
    assert _option_names() == set(ACTS) | set(ELSEWHERE)


def _recipe(options: dict[str, Any]) -> Recipe:
    table: dict[str, Any] = {"mixture": [{"hyperschedule": BLOCK}]}
    base = {
        "data.corpus": ["text.txt"],
        "data.vocabulary": 270,
        "data.context": 16,
        "data.validation": 0.1,
        "network.hidden_size": 16,
        "network.num_blocks": 1,
        "network.num_heads": 2,
        "run.steps": 4,
        "run.batch_size": 4,
        "run.precision": "no",
        "watch.log_every": 1,
    }
    for option, value in (base | options).items():
        name, _, key = option.rpartition(".")
        if not name.startswith("mixture."):
            table.setdefault(name, {})[key] = value
            continue
        place = int(name.rpartition(".")[2])
        table["mixture"] += [{} for _ in range(place + 1 - len(table["mixture"]))]
        table["mixture"][place][key] = value
    return Recipe.from_table(table)


def _digest_of_run(recipe: Recipe, folder: Path) -> str:
    """A digest of all results of a run except times and the recipe."""
    refuse_idle(recipe.data)
    run = build_setup(recipe, CPU)
    session = Session(run, folder)
    session.execute(StopRequest(), (Observer(run, session, folder, print),))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "loss", "gradient_norm", "rate", "tokens", "validation", "validation_error", "entropy")
    told = [{name: line[name] for name in kept if name in line} for line in lines]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [str(path.relative_to(folder)) for path in files]
    caches = sorted(str(path) for path in Path("cache").rglob("*.npy")) if Path("cache").is_dir() else []
    bodies = [path.read_bytes() for path in files if path.suffix in (".safetensors", ".txt")]
    digest = hashlib.sha256(repr((told, names, caches, bodies)).encode()).hexdigest()
    return f"{digest} {run.validation.num_bytes}"


_DIGESTS: dict[str, str] = {}
"""The digests of `_digest_without_option`: many options have the same other options."""


def _digest_without_option(beside: dict[str, Any], folder: Path) -> str:
    """The digest of the run with these options alone. Two runs must have it."""
    key = json.dumps(beside, sort_keys=True)
    if key not in _DIGESTS:
        before, again = (_digest_of_run(_recipe(beside), folder / name) for name in ("before", "again"))
        assert before == again
        _DIGESTS[key] = before
    return _DIGESTS[key]


@pytest.mark.slow
@pytest.mark.parametrize("option", ACTS)
def test_recipe_option_changes_the_run(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hdlm.training.text._SHORT", 0)
    text = "the cat sat on the mat and the dog sat on the log . "
    Path("text.txt").write_text(text * 60)
    Path("other.txt").write_text("a bird flew by and sang of the sea and the sky . " * 60)
    chat = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat on the mat"}]
    rows = [
        {"text": f"{text * 2}{number}", "body": f"and row {number} was read . " * 3, "messages": chat}
        for number in range(40)
    ]
    Path("chat.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    value, beside = ACTS[option]
    if option == "data.tokenizer":
        from hdlm.data import train_tokenizer

        Path("tokenizer").mkdir()
        Path("tokenizer", "tokenizer.json").write_text(train_tokenizer(["a bird flew by"], 258).to_json())
    before = _digest_without_option(beside, tmp_path)
    needed = {"process.gamma": 0.1} if option == "process.type" else {}
    after = _digest_of_run(_recipe(beside | needed | {option: value}), tmp_path / "after")
    assert after != before


@pytest.mark.parametrize(("earlier", "now"), [(True, "full"), (False, "none")])
def test_recorded_boolean_checkpoint_activations_is_read(earlier: bool, now: str) -> None:
    table = Recipe.load(recipes() / "demo.toml").to_table()
    table["network"]["checkpoint_activations"] = earlier
    assert Recipe.recorded(table).network.checkpoint_activations == now
    with pytest.raises(ValueError, match="one of none, selective, full"):
        Recipe.from_table(table)


@pytest.mark.parametrize("recomputation", ["none", "selective", "full"])
def test_recipe_sets_checkpoint_activations_of_network(
    recomputation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the cat sat on the mat and the dog sat on the log . " * 60)
    network = build_setup(_recipe({"network.checkpoint_activations": recomputation}), CPU).denoiser.backbone
    assert network.checkpoint_activations == recomputation


def test_build_setup_rejects_two_streams_with_full_context_before_reading_text() -> None:
    with pytest.raises(ValueError, match="reveal the tokens to predict"):
        build_setup(_recipe({"network.context": "full", "data.corpus": ["none.txt"]}), CPU)
