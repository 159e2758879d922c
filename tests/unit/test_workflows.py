"""`hdlm.train` and `hdlm.finetune`: arguments, results, and agreement with the commands."""

from __future__ import annotations

import importlib
import io
import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import hdlm
from hdlm.checkpoint import describe, load_checkpoint
from hdlm.cli import main
from hdlm.data import AbstractCorpus, Tokenizer
from hdlm.data.corpora import Documents
from hdlm.hyperschedule import Table
from hdlm.process import AbstractNoiseProcess, Weights
from hdlm.training import Recipe, StopRequest, find_resume_point
from hdlm.training.launch import begin, carry_out
from hdlm.training.monitor.watchers import progress_bar
from hdlm.training.text import Corpora
from hdlm.view.report import Measurement

SENTENCE = "the cat sat on the mat and the dog sat on the log . "
TEXTS = [f"{SENTENCE * 4}{number}" for number in range(40)]
NETWORK = {"hidden_size": 16, "num_blocks": 1, "num_heads": 2}
SHORT: dict[str, Any] = {
    "network": NETWORK,
    "hyperschedule": hdlm.Block(16, 4, 2),
    "recipe": {"data": {"vocabulary": 262}, "run": {"batch_size": 2, "precision": "no", "save_every": None}},
    "device": "cpu",
    "progress": False,
}


@dataclass(frozen=True)
class Halves(AbstractNoiseProcess):
    """A user process: half of the corrupted tokens become masks."""

    num_words: int

    def weights(self, u: torch.Tensor) -> Weights:
        return Weights(1 - u, u / 2, u / 2)


class Plain(hdlm.AbstractObjective):
    """An objective of the user's own that is not a dataclass."""

    def terms(self, process: AbstractNoiseProcess, canvas: hdlm.Canvas) -> tuple[Any, ...]:
        return ()


@dataclass(frozen=True)
class NumberedCorpus(AbstractCorpus):
    """A corpus of the user's own."""

    count: int

    def documents(self) -> Iterator[str]:
        yield from TEXTS[: self.count]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder, weights="raw").network.state_dict()


def _equal_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_train_gives_same_weights_for_every_kind_of_text(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number:02}.txt").write_text(text)
    files = sorted(folder.iterdir())
    texts: dict[str, Any] = {
        "a list of strings": list(TEXTS),
        "an iterable": iter(TEXTS),
        "a corpus": Documents(tuple(TEXTS)),
        "a corpus of the user's own": NumberedCorpus(len(TEXTS)),
        "a folder": str(folder),
        "a path": folder,
        "a glob": f"{folder}/*.txt",
        "paths": files,
    }
    made = {}
    for name, text in texts.items():
        output = tmp_path / name.replace(" ", "-")
        hdlm.train(text, output=output, steps=1, **SHORT)
        made[name] = _weights(output)
    assert all(_equal_weights(made["a folder"], weights) for weights in made.values())


def test_train_accepts_shards(tmp_path: Path) -> None:
    from hdlm.data import train_tokenizer
    from hdlm.data.shards import write_shards

    shards = write_shards(
        Documents(tuple(TEXTS)), train_tokenizer(TEXTS, 262), tmp_path / "shards", share=0.2
    )
    recipe = {**SHORT["recipe"], "data": {"vocabulary": 262, "validation": 0.2}}
    model = hdlm.train(shards, output=tmp_path / "run", steps=1, **{**SHORT, "recipe": recipe})
    assert model.training["recipe"]["data"]["corpus"] == [str(tmp_path / "shards")]


PIECES: dict[str, dict[str, Any]] = {
    "objects": {
        "process": hdlm.GIDD(262, 0.2),
        "noise_schedule": hdlm.Cosine(),
        "parameterization": hdlm.LeaveOneOut("sigma"),
        "objective": hdlm.NELBO(),
        "hyperschedule": hdlm.Slide(16, 4, 4),
        "network": hdlm.DDiTConfig(263, 16, 1, 2, 8, 0.1, 2, True, True, True, 16),
    },
    "tables": {
        "process": {"type": "GIDD", "p_uniform": 0.2},
        "noise_schedule": {"type": "Cosine"},
        "parameterization": {"type": "LeaveOneOut", "conditioning": "sigma"},
        "objective": {"type": "NELBO"},
        "hyperschedule": {"type": "Slide", "width": 4, "num_levels": 4},
        "network": {**NETWORK, "cond_dim": 8, "dropout": 0.1, "mlp_ratio": 2, "condition_output": True},
        "recipe": {**SHORT["recipe"], "data": {"vocabulary": 262, "context": 16}},
    },
}


def test_train_with_objects_equals_train_with_tables(tmp_path: Path) -> None:
    made = {
        name: hdlm.train(TEXTS, output=tmp_path / name, steps=2, **SHORT | PIECES[name]) for name in PIECES
    }
    assert _equal_weights(_weights(tmp_path / "objects"), _weights(tmp_path / "tables"))
    recipes = [Recipe.from_table(model.training["recipe"]) for model in made.values()]
    assert recipes[0] == recipes[1]
    model = made["objects"]
    assert model.denoiser.process == hdlm.GIDD(model.vocabulary.num_words, 0.2)
    assert model.denoiser.parameterization == hdlm.LeaveOneOut("sigma")
    assert model.hyperschedules == (hdlm.Slide(16, 4, 4),)
    assert model.network.config.condition_output


def test_train_with_user_process(tmp_path: Path) -> None:
    model = hdlm.train(TEXTS, output=tmp_path / "run", steps=1, **SHORT, process=Halves(262))
    assert describe(model.denoiser.process)["type"] == f"{__name__}.Halves"
    assert hdlm.load(tmp_path / "run").denoiser.process == model.denoiser.process


def test_train_and_write_with_table_hyperschedule(tmp_path: Path) -> None:
    levels = Table([[2] * 16, [1] * 16, [0] * 8 + [1] * 8, [0] * 16])
    recipe = SHORT["recipe"] | {
        "mixture": [{"hyperschedule": {"type": "Table", "table": levels.table.tolist()}}]
    }
    recipe["mixture"][0]["two_stream"] = False
    recipe["data"] = {"vocabulary": 262, "context": 16}
    short = {name: value for name, value in SHORT.items() if name != "hyperschedule"}
    model = hdlm.train(TEXTS, output=tmp_path / "run", steps=1, **short | {"recipe": recipe})
    assert model.hyperschedules == (levels,)
    assert len(hdlm.write(model, "", hdlm.Settings("exact"))[0].tokens) <= 16
    with pytest.raises(ValueError, match="has no other length"):
        hdlm.write(model, "", hdlm.Settings("exact", length=8))
    with pytest.raises(ValueError, match="has no other steps"):
        hdlm.write(model, "", hdlm.Settings("exact", steps=7))


@pytest.mark.parametrize("text", ["list", "file"])
def test_train_resume_equals_uninterrupted_run(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source: Any = TEXTS
    if text == "file":
        source = tmp_path / "text.txt"
        source.write_text("\n\n".join(TEXTS))
    hdlm.train(source, output=tmp_path / "through", steps=5, **SHORT)

    def interrupted(session: Any, console: Console, observers: Any = ()) -> StopRequest:
        stop = StopRequest()

        def interrupt(report: Any) -> None:
            if report.step == 2:
                stop(signal.SIGTERM, None)

        interrupt.finish = lambda step: None  # type: ignore[attr-defined]
        return carry_out(session, console, (*observers, interrupt), stop=stop)  # type: ignore[arg-type]

    with monkeypatch.context() as first:
        first.setattr("hdlm.workflows.carry_out", interrupted)
        hdlm.train(source, output=tmp_path / "run", steps=5, **SHORT)
    found = find_resume_point(tmp_path / "run")
    assert found is not None
    assert found.state.step == 2
    if text == "list":
        with pytest.raises(ValueError, match="give the same text again"):
            hdlm.train(output=tmp_path / "run", resume=True, progress=False)
        with pytest.raises(ValueError, match=r"another recipe: `data\.corpus`"):
            hdlm.train(TEXTS[1:], output=tmp_path / "run", resume=True, progress=False)
        hdlm.train(TEXTS, output=tmp_path / "run", resume=True, device="cpu", progress=False)
    else:
        hdlm.train(output=tmp_path / "run", resume=True, device="cpu", progress=False)
    assert _equal_weights(_weights(tmp_path / "through"), _weights(tmp_path / "run"))


MISTAKES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "two lengths": (
        TEXTS,
        {"hyperschedule": hdlm.Block(8, 2, 2), "network": PIECES["objects"]["network"]},
        "context",
    ),
    "two limits": (TEXTS, {"minutes": 1.0}, "minutes or steps, not both"),
    "no documents": ([], {}, "no documents"),
    "numbers": ([1, 2], {}, "each document must be a string; got one of type int"),
    "no such recipe": (TEXTS, {"recipe": "soufflé"}, "there is no recipe 'soufflé'; known: characters, demo"),
    "a local class": (TEXTS, {"process": None}, "a class of your own|must be a dataclass"),
    "no dataclass": (TEXTS, {"objective": Plain()}, "only dataclasses can be described; Plain is not one"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_train_rejects_bad_arguments_before_writing(mistake: str, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Local(Halves):
        """A class that no other program can find."""

    text, changes, complaint = MISTAKES[mistake]
    if mistake == "a local class":
        changes = {"process": Local(262)}
    with pytest.raises(ValueError, match=complaint):
        hdlm.train(text, output=tmp_path / "run", steps=1, **SHORT | changes)
    assert not (tmp_path / "run").exists()


def test_train_rejects_file_names_as_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(SENTENCE)
    with pytest.raises(ValueError, match=r"names of files: .*a\.txt\. Give them as pathlib\.Path"):
        hdlm.train([str(tmp_path / "a.txt")], output=tmp_path / "run", steps=1, **SHORT)


def test_train_refuses_folder_with_a_run(tmp_path: Path) -> None:
    hdlm.train(TEXTS, output=tmp_path / "run", steps=1, **SHORT)
    with pytest.raises(ValueError, match="holds a run already: resume it with resume=True"):
        hdlm.train(TEXTS, output=tmp_path / "run", steps=1, **SHORT)
    with pytest.raises(ValueError, match="has ended"):
        hdlm.train(TEXTS, output=tmp_path / "run", resume=True, progress=False)


def test_train_and_finetune_stay_functions_after_module_import() -> None:
    for name in ("train", "finetune"):
        module = importlib.import_module(f"hdlm.{name}")
        assert callable(module.main)
        assert getattr(hdlm, name).__module__ == "hdlm.workflows"
        assert sys.modules[f"hdlm.{name}"] is module


# -- progress -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", [True, False])
def test_train_prints_progress_only_if_asked(progress: bool, tmp_path: Path, capsys: Any) -> None:
    hdlm.train(TEXTS, output=tmp_path / "run", steps=1, **SHORT | {"progress": progress})
    printed = capsys.readouterr()
    assert printed.err == ""
    assert ("step 1/1" in printed.out) is progress
    assert progress or not printed.out


@pytest.mark.parametrize(
    ("notebook", "has_widgets", "bar"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_progress_bar_in_notebook_needs_widgets(
    notebook: bool, has_widgets: bool, bar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []

    class Bar:
        """Stands for a bar of rich."""

        def __init__(self, *columns: object, console: Console) -> None:
            shown.append(console)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *error: object) -> None:
            return None

        def add_task(self, name: str, total: float) -> int:
            return 0

    monkeypatch.setattr("hdlm.training.monitor.watchers.Progress", Bar)
    monkeypatch.setattr(
        "hdlm.training.monitor.watchers.find_spec", lambda name: object() if has_widgets else None
    )
    with progress_bar(Console(file=io.StringIO(), force_jupyter=notebook, force_terminal=False)):
        assert bool(shown) is bar


# -- one orchestration ------------------------------------------------------------------------------------------

RECIPE = """
[data]
vocabulary = 262
context = 16
validation = 0.1
[network]
hidden_size = 16
num_blocks = 1
num_heads = 2
[[mixture]]
hyperschedule = { type = "Block", width = 4, num_levels = 4 }
[run]
steps = 3
batch_size = 2
precision = "no"
"""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(SENTENCE * 60)
    return file


def _validation_steps(folder: Path) -> list[int]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line["step"] for line in map(json.loads, lines) if "validation" in line]


def test_validation_of_last_step_is_logged(text: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE)
    words = ["train", "--text", str(text), "--recipe", str(recipe), "--validate-every", "2"]
    assert main([*words, "--output", str(tmp_path / "command")]) == 0, capsys.readouterr().err
    changes = {"watch": {"validate_every": 2}, "data": {"corpus": [str(text)]}}
    hdlm.train(output=tmp_path / "call", recipe=Recipe.load(recipe, changes), device="cpu", progress=False)
    assert _validation_steps(tmp_path / "command") == _validation_steps(tmp_path / "call") == [2, 3]
    assert _equal_weights(_weights(tmp_path / "command"), _weights(tmp_path / "call"))


def test_demo_finishes_its_run(text: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "demo.toml").write_text(RECIPE.replace("context = 16", "context = 32"))
    monkeypatch.setattr("hdlm.cli.demo.recipes", lambda: tmp_path / "recipes")
    words = ["demo", "--act", "2", "--text", str(text), "--output", str(tmp_path / "demo"), "--device", "cpu"]
    assert main(words) == 0, capsys.readouterr().err
    assert (tmp_path / "demo" / "report.md").is_file()
    with pytest.raises(ValueError, match="has ended, after 3 steps"):
        find_resume_point(tmp_path / "demo")


def _run_demo(
    text: Path, folder: Path, monkeypatch: Any, measured: Callable[..., Measurement], *, longest: float
) -> int:
    """Act 2 of the demo, with scripted measurements and a recipe of a fifth of a second."""
    (folder / "recipes").mkdir()
    recipe = RECIPE.replace("context = 16", "context = 32").replace("steps = 3", "minutes = 0.003")
    (folder / "recipes" / "demo.toml").write_text(recipe)
    monkeypatch.setattr("hdlm.cli.demo.recipes", lambda: folder / "recipes")
    monkeypatch.setattr("hdlm.evaluation.held_out.measured", measured)
    monkeypatch.setattr("hdlm.cli.demo.LONGEST", longest)
    words = ["demo", "--act", "2", "--text", str(text), "--output", str(folder / "demo"), "--device", "cpu"]
    return main(words)


def test_demo_extends_training_until_it_beats_bigram(
    text: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    bits = iter(
        [9.0, 1e-3 + 0.5, 0.4, 0.4]
    )  # untrained, then at the end of the run and of its extension, and last
    counts = [Measurement("unigram counts", 1.0, 2.0), Measurement("bigram counts", 0.5, 2.0)]
    monkeypatch.setattr("hdlm.evaluation.held_out.counted", lambda run: counts)

    def measured(*_: object, **__: object) -> Measurement:
        return Measurement("network", next(bits), 2.0)

    assert _run_demo(text, tmp_path, monkeypatch, measured, longest=60.0) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.count("does not beat the bigram counts (0.500 bits per byte) yet") == 1
    minutes = json.loads((tmp_path / "demo" / "config.json").read_text())["training"]["recipe"]["run"][
        "minutes"
    ]
    assert minutes >= 1.5 * 0.003
    with pytest.raises(ValueError, match="has ended"):
        find_resume_point(tmp_path / "demo")


def test_demo_stops_at_longest_time(text: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    def measured(*_: object, **__: object) -> Measurement:
        return Measurement("network", 99.0, 2.0)

    assert _run_demo(text, tmp_path, monkeypatch, measured, longest=0.0) == 0, capsys.readouterr().err
    assert "Training continues" not in capsys.readouterr().out
    assert (tmp_path / "demo" / "report.md").is_file()


def test_demo_after_ctrl_c_writes_report_and_finishes_run(
    text: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """Ctrl-C comes when the untrained network is measured, and the model never beats the bigram."""
    pressed: list[int] = []

    def measured(*_: object, **__: object) -> Measurement:
        if not pressed:
            pressed.append(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return Measurement("network", 99.0, 2.0)

    assert _run_demo(text, tmp_path, monkeypatch, measured, longest=60.0) == 0, capsys.readouterr().err
    assert "stopped by SIGINT after 0 steps" in capsys.readouterr().out
    assert (tmp_path / "demo" / "report.md").is_file()
    with pytest.raises(ValueError, match="has ended"):
        find_resume_point(tmp_path / "demo")


def test_extend_rejects_run_limited_by_steps(tmp_path: Path) -> None:
    table = {"network": NETWORK, "data": {"vocabulary": 262, "context": 16, "validation": 0.1}}
    table |= {"run": {"steps": 1, "precision": "no"}}
    table |= {"mixture": [{"hyperschedule": {"type": "Block", "width": 4, "num_levels": 2}}]}
    corpora = Corpora(Documents(tuple(TEXTS)))
    session = begin(Recipe.from_table(table), tmp_path, torch.device("cpu"), lambda line: None, text=corpora)
    with pytest.raises(ValueError, match="a run that ends after 1 steps cannot be extended by minutes"):
        session.extend(1.0)


def test_run_interrupted_in_last_measurement_is_resumable(tmp_path: Path) -> None:
    recipe = Recipe.from_table(
        {"mixture": [{"hyperschedule": {"type": "Block", "width": 4, "num_levels": 2}}]}
        | {
            "network": NETWORK,
            "data": {"vocabulary": 262, "context": 16, "validation": 0.1},
            "run": {"steps": 1, "precision": "no"},
        }
    )
    session = begin(
        recipe, tmp_path, torch.device("cpu"), lambda line: None, text=Corpora(Documents(tuple(TEXTS)))
    )

    def killed() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(session, Console(quiet=True), last=killed)
    assert find_resume_point(tmp_path) is not None


# -- finetuning -------------------------------------------------------------------------------------------------


def test_finetune_keeps_pieces_of_checkpoint(tmp_path: Path) -> None:
    first = hdlm.train(TEXTS, output=tmp_path / "first", steps=2, **SHORT | PIECES["objects"])
    second = hdlm.finetune(
        first, TEXTS[:20], output=tmp_path / "second", steps=2, device="cpu", progress=False
    )
    for part in ("process", "parameterization"):
        assert getattr(second.denoiser, part) == getattr(first.denoiser, part)
    assert second.hyperschedules == first.hyperschedules
    assert second.network.config == first.network.config
    assert second.tokenizer_json == first.tokenizer_json
    assert second.training["recipe"]["objective"] == {"type": "NELBO"}
    assert not _equal_weights(_weights(tmp_path / "first"), _weights(tmp_path / "second"))


def test_finetune_changes_given_options(tmp_path: Path) -> None:
    hdlm.train(TEXTS, output=tmp_path / "first", steps=2, **SHORT)
    made = hdlm.finetune(
        str(tmp_path / "first"),
        TEXTS,
        output=tmp_path / "second",
        steps=1,
        process={"type": "Uniform"},
        objective=hdlm.NELBO(),
        recipe={
            "optimizer": {"name": "adamw"},
            "run": {"batch_size": 2},
            "mixture": [{"hyperschedule": {"type": "Slide", "width": 4, "num_levels": 4}}],
        },
        keep_optimizer=False,
        device="cpu",
        progress=False,
    )
    assert isinstance(made.denoiser.process, hdlm.Uniform)
    assert made.hyperschedules == (hdlm.Slide(16, 4, 4),)
    assert made.training["recipe"]["optimizer"]["name"] == "adamw"


def test_finetune_keep_optimizer_needs_run_folder(tmp_path: Path) -> None:
    model = hdlm.train(TEXTS, output=tmp_path / "first", steps=2, **SHORT)
    options: dict[str, Any] = {"steps": 1, "device": "cpu", "progress": False}
    with pytest.raises(ValueError, match="needs the folder of a run"):
        hdlm.finetune(model, TEXTS, output=tmp_path / "second", keep_optimizer=True, **options)
    hdlm.finetune(tmp_path / "first", TEXTS, output=tmp_path / "kept", keep_optimizer=True, **options)
    hdlm.finetune(tmp_path / "first", TEXTS, output=tmp_path / "new", **options)
    assert not _equal_weights(_weights(tmp_path / "kept"), _weights(tmp_path / "new"))


PEERS: dict[str, str] = {
    "mdlm": "WeightedCrossEntropy",
    "sedd": "ScoreEntropy",
    "sedd_uniform": "ScoreEntropy",
    "bd3lm": "WeightedCrossEntropy",
    "gidd": "NELBO",
    "duo": "NELBO",
}


def _tokenizer(num_words: int) -> str:
    """A tokenizer with `num_words` words, one for each word of the sentence."""
    tokenizers = pytest.importorskip("tokenizers")
    known = ["[UNK]", "[SEP]", *dict.fromkeys(SENTENCE.split()), *map(str, range(len(TEXTS)))]
    known += [f"unused{number}" for number in range(num_words)]
    words = {word: number for number, word in enumerate(known[:num_words])}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece()
    made.add_special_tokens(["[UNK]", "[SEP]"])
    return str(made.to_str())


@pytest.mark.parametrize("name", PEERS)
def test_finetune_peer_checkpoint_lowers_loss(name: str, shared: Path, tmp_path: Path) -> None:
    """Finetuning keeps the pieces of the checkpoint and lowers the loss."""
    start = hdlm.load(shared / "golden" / "peers" / name)
    words = start.vocabulary.num_words
    start = replace(start, tokenizer_json=_tokenizer(words))
    assert Tokenizer.from_json(str(start.tokenizer_json), "", words).vocabulary.num_words == words
    before = {key: value.clone() for key, value in start.network.state_dict().items()}
    recipe = {"run": {"batch_size": 8, "precision": "no"}, "watch": {"log_every": 1}}
    rates = dict.fromkeys(("matrix_rate", "embedding_rate", "head_rate"), 0.01)
    recipe["optimizer"] = {**rates, "name": "adamw", "warmup": 0.0, "schedule": "constant"}
    made = hdlm.finetune(
        start, TEXTS, output=tmp_path / "run", steps=24, recipe=recipe, device="cpu", progress=False
    )
    assert _equal_weights(before, start.network.state_dict())
    assert made.denoiser.process == start.denoiser.process
    assert made.denoiser.parameterization == start.denoiser.parameterization
    assert made.noise_schedule == start.noise_schedule
    assert made.hyperschedules == start.hyperschedules
    assert made.network.config == start.network.config
    assert made.training["recipe"]["objective"]["type"] == PEERS[name]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])
