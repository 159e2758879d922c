"""The command line for a new user: train, sample, infill, show, and a one-line message for every mistake."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from hdlm.checkpoint import load_checkpoint
from hdlm.cli import _models, main
from hdlm.data import train_tokenizer
from hdlm.sampling import ALGORITHMS

WORDS = (
    "the",
    "a",
    "great",
    "old",
    "cat",
    "dog",
    "king",
    "people",
    "river",
    "saw",
    "ran",
    "spoke",
    "to",
    "of",
)
TEXT = " ".join(random.Random(0).choices(WORDS, k=1500))
CONTEXT, VOCABULARY, STEPS = 16, 300, 12
RECIPE = f"""
[data]
vocabulary = {VOCABULARY}
context = {CONTEXT}
validation = 0.1

[network]
hidden_size = 16
num_blocks = 1
num_heads = 2
shifted = SHIFTED

[[mixture]]
hyperschedule = {{ type = "Block", width = 4, num_levels = 4 }}

[[mixture]]
hyperschedule = {{ type = "Block", width = {CONTEXT}, num_levels = 8 }}
two_stream = false

[run]
steps = {STEPS}
batch_size = 4
precision = "no"
"""

Hdlm = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hdlm(capsys):
    """Run `hdlm`; the answer is (exit status, standard output, standard error)."""

    def run(*words: object) -> tuple[int, str, str]:
        try:
            status = main([str(word) for word in words])
        except SystemExit as leaving:
            status = leaving.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a text and two recipes, of an ordinary and of a shifted network."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "text.txt").write_text(TEXT)
    (folder / "aligned.toml").write_text(RECIPE.replace("SHIFTED", "false"))
    (folder / "shifted.toml").write_text(RECIPE.replace("SHIFTED", "true"))
    return folder


@pytest.fixture(scope="module", params=["aligned", "shifted"])
def model(request, home, tmp_path_factory) -> Path:
    """A checkpoint that `hdlm train` left; its name is that of its recipe."""
    folder = tmp_path_factory.mktemp("models") / request.param
    recipe = home / f"{request.param}.toml"
    words = ["train", "--text", home / "text.txt", "--recipe", recipe, "--output", folder, "--steps", STEPS]
    assert main([str(word) for word in words]) == 0
    return folder


one_model = pytest.mark.parametrize("model", ["aligned"], indirect=True)
"""For tests that need only one model."""


@pytest.fixture
def shipped(tmp_path, monkeypatch) -> str:
    """The name of the only model that ships with the package."""
    folder = tmp_path / "pretrained" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(_models, "pretrained", lambda: folder.parent)
    return folder.name


@pytest.fixture
def copy(model, tmp_path) -> Path:
    """The checkpoint, to be damaged."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


def _train(home: Path, output: Path, *more: object) -> list[object]:
    return [
        "train",
        "--text",
        home / "text.txt",
        "--recipe",
        home / "aligned.toml",
        "--output",
        output,
        *more,
    ]


def _texts(answer: tuple[int, str, str]) -> list[str]:
    status, out, err = answer
    assert (status, err) == (0, "")
    return [passage["text"] for passage in json.loads(out)["passages"]]


def test_train_writes_checkpoint_and_reports_validation(hdlm, home, tmp_path):
    status, out, _ = hdlm(*_train(home, tmp_path / "new", "--steps", 3, "--json"))
    assert status == 0
    result = json.loads(out)
    assert (result["steps"], result["tokens"]) == (3, 3 * 4 * CONTEXT)
    assert [row["name"] for row in result["validation"]] == [
        "unigram counts",
        "bigram counts",
        "network, after 3 steps",
    ]
    lines = [json.loads(line) for line in (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3]
    assert load_checkpoint(tmp_path / "new").training["steps"] == 3


def test_show_loss_draws_metrics_file(hdlm, model, tmp_path):
    picture = tmp_path / "loss.png"
    status, out, _ = hdlm("show", "loss", model / "metrics.jsonl", "--output", picture)
    assert (status, out) == (0, f"wrote {picture}\n")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_sample_continues_prompt(hdlm, model):
    status, out, err = hdlm("sample", model, "--prompt", "the great cat", "--seed", 3)
    assert (status, err) == (0, "")
    assert out.startswith("the great cat")
    assert len(out) > len("the great cat\n")


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_sample_with_every_algorithm_writes_whole_passage(hdlm, model, name):
    words = ["--prompt", "the king", "--algorithm", name, "--length", 8, "--json"]
    status, out, err = hdlm("sample", model, *words)
    assert (status, err) == (0, "")
    result = json.loads(out)
    (passage,) = result["passages"]
    assert result["settings"]["algorithm"] == name
    assert result["num_evaluations"] > 0
    assert passage["text"].startswith("the king")
    assert len(passage["tokens"]) == 8
    assert max(passage["tokens"]) < VOCABULARY


def test_sample_json_has_fixed_keys(hdlm, model):
    out = hdlm("sample", model, "--num", 2, "--seed", 4, "--eta", 0.2, "--json")[1]
    result = json.loads(out)
    known = {"checkpoint", "seed", "settings", "approximate_cache", "num_evaluations", "passages"}
    assert result.keys() == known
    assert result["approximate_cache"] is None
    assert (result["checkpoint"], result["seed"], result["settings"]["eta"]) == (str(model), 4, 0.2)
    fields = {"text", "tokens", "given", "num_evaluations", "num_computed"}
    assert [passage.keys() for passage in result["passages"]] == [fields] * 2


def test_sample_text_depends_on_seed_only(hdlm, model):
    def write(*more: object) -> list[str]:
        return _texts(
            hdlm("sample", model, "--prompt", "the dog", "--num", 3, "--length", 8, "--json", *more)
        )

    texts = write("--seed", 7)
    assert write("--seed", 7) == texts
    assert write("--seed", 7, "--batch-size", 2) == texts
    assert write("--seed", 7, "--num", 1) == texts[:1]
    assert write("--seed", 8) != texts
    assert len(set(texts)) == 3


def test_sample_trace_lists_every_change(hdlm, model):
    out = hdlm("sample", model, "--trace", "--json", "--algorithm", "acs", "--eta", 0.5)[1]
    result = json.loads(out)
    (passage,) = result["passages"]
    last = {change["position"]: change["new"] for change in result["changes"]}
    assert sorted(last) == list(range(passage["given"], CONTEXT))
    assert [last[position] for position in sorted(last)] == passage["tokens"][passage["given"] :]
    assert {change["reason"] for change in result["changes"]} >= {"unmasked"}


def test_sample_replay_shows_prompt_in_every_frame(hdlm, model):
    status, out, _ = hdlm("sample", model, "--prompt", "the dog", "--replay", "--seed", 2)
    assert status == 0
    frames = re.findall(r"^  step +\d+ ", out, re.M)
    assert len(frames) > 2
    assert "░" in out
    assert out.count("the dog") == len(frames)


def test_sample_infill_keeps_both_sides(hdlm, model):
    for seed in range(3):
        (text,) = _texts(
            hdlm("sample", model, "--infill", "the [MASK:3] king spoke", "--seed", seed, "--json")
        )
        assert text.startswith("the")
        assert text.endswith("king spoke")
    assert hdlm("sample", model, "--infill", "[MASK:2] cat", "--replay")[0] == 0


def test_info_describes_model(hdlm, model):
    status, out, err = hdlm("info", model, "--json")
    assert (status, err) == (0, "")
    said = json.loads(out)
    checkpoint = load_checkpoint(model)
    assert said["parameters"] == sum(weight.numel() for weight in checkpoint.network.parameters())
    assert said["process"] == {"type": "EpsilonHybrid", "num_words": VOCABULARY, "epsilon": 0.01}
    assert said["parameterization"]["type"] == ("Shifted" if model.name == "shifted" else "Mean")
    assert [schedule["width"] for schedule in said["hyperschedules"]] == [4, CONTEXT]
    table = hdlm("info", model)[1]
    assert "EpsilonHybrid" in table
    assert "training.recipe.data" in table


def test_train_from_checkpoint_keeps_tokenizer_and_weights(hdlm, home, model, tmp_path):
    words = _train(home, tmp_path / "on", "--recipe", home / f"{model.name}.toml", "--from", model)
    status, _, err = hdlm(*words, "--steps", 1)
    assert (status, err) == (0, "")
    assert (tmp_path / "on" / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "on" / "model.safetensors")
    assert all((before[name] == after[name]).all() for name in before)  # the warm-up begins with a rate of 0


@pytest.mark.slow
def test_train_after_ctrl_c_leaves_usable_checkpoint(hdlm, home, tmp_path):
    output = tmp_path / "stopped"
    words = map(str, _train(home, output, "--minutes", 30))
    command = [sys.executable, "-m", "hdlm", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (output / "metrics.jsonl").exists():
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    steps = int(re.search(r"stopped by SIGINT after (\d+) steps", out)[1])
    assert load_checkpoint(output).training["steps"] == steps
    assert load_checkpoint(output, weights="raw").training["steps"] == steps
    assert hdlm("sample", output, "--prompt", "the cat")[0] == 0


@pytest.mark.slow
def test_demo_act_2_writes_run_folder_and_report(hdlm, tmp_path):
    text, output = tmp_path / "text.txt", tmp_path / "demo"
    text.write_text(" ".join(random.Random(1).choices(WORDS, k=8000)))
    status, out, err = hdlm(
        "demo", "--act", 2, "--minutes", 0.05, "--text", text, "--output", output, "--device", "cpu"
    )
    assert (status, err) == (0, "")
    assert out.rstrip().endswith(f" serve {output}")
    assert {path.name for path in output.iterdir()} >= {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "metrics.jsonl",
        "report.md",
        "loss.png",
        "hyperschedule.png",
    }
    report = (output / "report.md").read_text()
    assert "| unigram counts" in report
    assert "| network, untrained" in report
    assert "(loss.png)" in report
    assert hdlm("sample", output, "--length", 12)[0] == 0


@one_model
def test_python_m_hdlm_equals_main(hdlm, model, tmp_path):
    """`python -m hdlm` gives the output of `main`, also from another folder."""
    words = ["sample", str(model), "--prompt", "the cat", "--seed", "3", "--json"]
    ran = subprocess.run([sys.executable, "-m", "hdlm", *words], capture_output=True, text=True, cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout) == json.loads(hdlm(*words)[1])
    ran = subprocess.run(
        [sys.executable, "-m", "hdlm", "smaple"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    _assert_one_line(ran.stderr, "'smaple'", "'sample'")


def _assert_one_line(err: str, *parts: str) -> None:
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for part in parts:
        assert part in err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--algorithm nonsense", ("'nonsense'", "known are original,")),
        ("--algorithm asc", ("'asc'", "Did you mean 'acs'?")),
        (f"--prompt {'the_' * 30}", ("prompt has", f"canvas {CONTEXT} positions", "Shorten the prompt")),
        ("--length 99", (f"between 1 and {CONTEXT}", "got 99")),
        ("--width 99", (f"[1, length={CONTEXT}]", "got 99", f"Use {CONTEXT} for one window")),
        ("--hyperschedule blok", ("'blok'", "known are autoregressive, flat, block")),
        ("--eta -1", ("`eta` must lie in [0, 1]", "got -1.0")),
        ("--temperature nan", ("`temperature` must be 0, or lie in", "got nan")),
        ("--guidance inf", ("`scale` of guidance", "got inf")),
        ("--top-p 2", ("(0, 1]", "got 2.0")),
        ("--device nonsense", ("--device must be auto or one of", "'nonsense'")),
        ("--infill no-gap", ("--infill needs a gap", "[MASK:5]")),
        ("--infill [MASK:99]", ("The gap [MASK:99] does not fit", f"the canvas has {CONTEXT} positions")),
        ("--infill [MASK] --prompt the", ("--prompt: not allowed with argument --infill",)),
        ("--num 0", ("argument --num/--num-sequences: must be a whole number, at least 1; got '0'",)),
        ("--steps -3", ("argument --steps: must be a whole number, at least 1; got '-3'",)),
        ("--batch-size few", ("argument --batch-size: must be a whole number, at least 1; got 'few'",)),
        ("--seed -1", ("`seed` must lie in [0, 2^64)", "got -1")),
        ("--trace", ("--trace", "add --json")),
        ("--nonsense", ("hdlm sample: unrecognized arguments: --nonsense", "hdlm sample --help")),
    ],
)
@one_model
def test_sample_rejects_bad_arguments_in_one_line(hdlm, model, words, parts):
    status, out, err = hdlm("sample", model, *words.split())
    assert (status, out) == (2, "")
    _assert_one_line(err, "hdlm sample: ", *parts)


def _remove_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["vocab_embed.embedding"]
    save_file(tensors, folder / "model.safetensors")


def _write_nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["vocab_embed.embedding"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors")


def _truncate(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _change_config(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def _replace_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(train_tokenizer([TEXT], VOCABULARY - 20).to_json())


DAMAGE: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "truncated weights": (
        lambda folder: _truncate(folder, "model.safetensors"),
        ("model.safetensors is damaged",),
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        ("has no weights: neither model.safetensors",),
    ),
    "a missing tensor": (_remove_tensor, ("model.safetensors", "missing vocab_embed.embedding")),
    "not a number": (_write_nan, ("model.safetensors is damaged: vocab_embed.embedding", "not finite")),
    "truncated config": (lambda folder: _truncate(folder, "config.json"), ("config.json is damaged",)),
    "no config": (lambda folder: (folder / "config.json").unlink(), ("has no config", "config.json")),
    "no process": (
        lambda folder: _change_config(folder, lambda config: config.pop("process")),
        ("config.json lacks process",),
    ),
    "hyperschedules that are no list": (
        lambda folder: _change_config(folder, lambda config: config.update(hyperschedules=3)),
        ("config.json", "`hyperschedules` must be a list; got 3"),
    ),
    "a hyperschedule that is too wide": (
        lambda folder: _change_config(folder, lambda config: config["hyperschedules"][0].update(width=99)),
        ("config.json", f"[1, length={CONTEXT}]", "got 99"),
    ),
    "a helper class for a process": (
        lambda folder: _change_config(folder, lambda config: config.update(process={"type": "Kernel"})),
        ("config.json", "there is no process 'Kernel'", "EpsilonHybrid"),
    ),
    "another vocabulary": (
        lambda folder: _change_config(folder, lambda config: config["vocabulary"].update(num_words=200)),
        ("the vocabulary does not match: it has 200 words",),
    ),
    "another tokenizer": (
        _replace_tokenizer,
        ("tokenizer.json", f"has {VOCABULARY - 20} words, its network {VOCABULARY}", "Restore the file"),
    ),
    "truncated tokenizer": (
        lambda folder: _truncate(folder, "tokenizer.json"),
        ("tokenizer.json is not a tokenizer",),
    ),
    "a tokenizer of bytes": (
        lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff"),
        ("tokenizer.json is damaged",),
    ),
}


@one_model
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("verb", ["sample", "info"])
def test_damaged_checkpoint_is_refused_in_one_line(hdlm, copy, verb, damage):
    inflict, parts = DAMAGE[damage]
    inflict(copy)
    status, out, err = hdlm(verb, copy)
    assert (status, out) == (2, "")
    _assert_one_line(err, f"hdlm {verb}: ", *parts)


@one_model
def test_train_from_checkpoint_with_other_tokenizer_is_refused(hdlm, home, copy, tmp_path):
    _replace_tokenizer(copy)
    status, _, err = hdlm(*_train(home, tmp_path / "new", "--from", copy))
    assert status == 2
    _assert_one_line(err, "hdlm train: ", "tokenizer.json", "they do not belong together")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("verb", ["sample", "info"])
def test_missing_checkpoint_is_refused_in_one_line(hdlm, home, shipped, verb):
    wanted = {
        "absent": ("there is no checkpoint folder 'absent'", f"(there: {shipped})"),
        home / "text.txt": ("text.txt is not a file of weights",),
    }
    for name, parts in wanted.items():
        status, out, err = hdlm(verb, name)
        assert (status, out) == (2, "")
        _assert_one_line(err, f"hdlm {verb}: ", *parts)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (["--text", "absent.txt"], ("no text at 'absent.txt'", "give a file, a folder")),
        (["--text", "empty.txt"], ("empty.txt holds no text", "give a file with text in it")),
        (["--text", "latin.txt"], ("latin.txt is not UTF-8 text", "convert it")),
        (["--text", "short.txt"], (f"less than one window of {CONTEXT}", "give more text")),
        (["--recipe", "nonsense"], ("there is no recipe 'nonsense'", "known: characters, demo,")),
        (["--recipe", "absent.toml"], ("there is no recipe at absent.toml",)),
        (["--recipe", "text.txt.toml"], ("text.txt.toml is not TOML",)),
        (["--steps", "0"], ("argument --steps: must be a whole number, at least 1; got '0'",)),
        (["--minutes", "nan"], ("`run.minutes` must be positive; got nan",)),
        (["--seed", "-1"], ("`run.seed` must be in [0, 2^64); got -1",)),
        (["--device", "nonsense"], ("--device must be auto or one of", "'nonsense'")),
        (["--from", "absent"], ("there is no checkpoint folder 'absent'",)),
        (["--output", "text.txt"], ("--output text.txt is a file", "name of a folder")),
        (["--output", "full"], ("full already holds a checkpoint", "choose another folder")),
    ],
)
@pytest.mark.usefixtures("shipped")
def test_train_rejects_bad_arguments_in_one_line(hdlm, home, tmp_path, monkeypatch, given, parts):
    monkeypatch.chdir(tmp_path)
    for name, content in {"empty": b" \n", "latin": b"caf\xe9 " * 99, "short": b"the cat ran"}.items():
        Path(f"{name}.txt").write_bytes(content)
    Path("text.txt.toml").write_text(TEXT)
    Path("text.txt").write_text(TEXT)
    Path("full").mkdir()
    Path("full", "config.json").write_text("{}")
    status, _, err = hdlm(*_train(home, Path("new"), *given))
    assert status == 2
    _assert_one_line(err, "hdlm train: ", *parts)
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("written", "instead", "parts"),
    [
        ("hidden_size", "hiden_size", ("`network.hiden_size`", "did you mean `network.hidden_size`?")),
        ("[run]", "[runs]", ("`runs`", "did you mean `run`?")),
        ("hidden_size = 16", "hidden_size = 'wide'", ("`network.hidden_size` must be int; got 'wide'",)),
        (
            "num_heads = 2",
            "num_heads = 3",
            ("`hidden_size` must be an even multiple of `num_heads` (3)", "got 16"),
        ),
        ("width = 4", "width = 99", (f"[1, length={CONTEXT}]", "got 99", f"Use {CONTEXT} for one window")),
        ("width = 4", "widht = 4", ("Block has no option 'widht'; did you mean width?",)),
        ("width = 4", "length = 8, width = 4", ("without `length`, which is data.context",)),
        ('"Block"', '"Blok"', ("there is no hyperschedule 'Blok'", "known: Block, ")),
        ("vocabulary = 300", "vocabulary = 20", ("`vocabulary`", "at least 257; got 20")),
        ("validation = 0.1", "validation = 0.9", ("`data.validation` must be in (0, 0.5]; got 0.9",)),
    ],
)
def test_train_rejects_bad_recipe_in_one_line(hdlm, home, tmp_path, written, instead, parts):
    recipe, output = tmp_path / "mine.toml", tmp_path / "new"
    text = (home / "aligned.toml").read_text()
    assert written in text
    recipe.write_text(text.replace(written, instead, 1))
    status, _, err = hdlm(*_train(home, output, "--recipe", recipe))
    assert status == 2
    _assert_one_line(err, "hdlm train: ", *parts)
    assert not output.exists()
