"""Every command and Python snippet of the published documents runs as it is written there.

They run in a folder that holds `hdlm/` and `configs/`, as a clone does, with a stand-in for the hub: its cache on disk,
which has tiny weights under the published id and the real tokenizer. Commands go through bash. Only the sizes of
training are changed, by options appended to its commands; the published defaults need two large GPUs for days.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests import gpt2, hub_cache
from tests.conftest import GOLDEN_DATA, REPOSITORY

DOCUMENTS = ("README_published_repository.txt", "model_card_epsilon_0.01.txt")
MODEL = "hdlm-group/hdlm-base-epsilon-0.01"
JUDGE = "gpt2-large"
SKIPPED = {
    "git clone https://github.com/ServiceNow/hdlm.git": "it fetches the published repository itself",
    "cd hdlm": "it enters what the line before has fetched",
    "bash create_uv_venv.sh": "it makes an environment; the tests have one",
    "source .venv/bin/activate": "it enters what the line before has made",
}
"""Lines that are not run, and why."""
RUN = Path("exp_local", "openwebtext-train", "hdlm-experiments", "epsilon-hdlm-1")
SMALL = {
    "training.batch_size": 4,
    "gradient_accumulation_steps": 1,
    "training.n_iters": 2,
    "training.snapshot_freq": 2,
    "training.eval_freq": 2,
    "training.warmup_iter": 1,
    "annealing.width": 4,
    "annealing.tau": 4,
    "eval.batch_size": 2,
}
SMALL_NETWORK = {"model.hidden_size": 8, "model.length": 16, "model.n_blocks": 1, "model.n_heads": 2}
SENTENCES = (
    "the cat sat on the mat , and the dog lay by the door . nobody knew what either of them thought of it . "
)


def _document(name: str) -> str:
    file = GOLDEN_DATA / "seed" / name
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _commands(document: str) -> list[str]:
    """Every bash command of a document, with its continuation lines."""
    text = _document(document)
    lines = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)) or text
    joined = re.findall(r"^(?:[^\n]*\\\n)*[^\n]*$", lines, re.M)
    return [command for command in joined if re.match(r"(python|accelerate|git|cd|bash|source) ", command)]


def _snippets(document: str) -> list[str]:
    """Every Python snippet of a document, from its first import to the line that prints the result."""
    return re.findall(r"^from hdlm\..*?^print\(.*?\)$", _document(document), re.M | re.S)


COMMANDS = [
    (document, command) for document in DOCUMENTS for command in _commands(document) if command not in SKIPPED
]
EVALUATIONS = [one for one in COMMANDS if "eval_modeling" in one[1] and MODEL in one[1]]
GENERATIONS = [one for one in COMMANDS if "eval_generation" in one[1]]
TRAININGS = [one for one in COMMANDS if "hdlm/train.py" in one[1]]
FINETUNINGS = [one for one in COMMANDS if "hdlm/finetune.py" in one[1]]
OF_A_RUN = [one for one in COMMANDS if "exp_local" in one[1]]


def _params_of(commands: list[tuple[str, str]]) -> list[object]:
    return [pytest.param(command, id=document.partition("_")[0]) for document, command in commands]


@dataclass(frozen=True)
class Clone:
    """A folder that looks like a clone of the published repository.

    Attributes:
        folder: Where it is.
        environment: Of everything that runs in it.
    """

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str) -> str:
        """Run a program and return its output. The error message of a failure contains all output."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{command} exited {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def bash(self, command: str, **options: object) -> str:
        """Run a command as it is written, with options appended to it."""
        appended = "".join(f" {name}={value}" for name, value in options.items())
        return self.run("bash", "-euo", "pipefail", "-c", command + appended)


@pytest.fixture
def clone(tmp_path: Path, shared: Path) -> Clone:
    for name in ("hdlm", "configs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    cache, data = tmp_path / "hub", tmp_path / "data"
    weights = shared / "golden" / "epsilon_vocab50257"
    hub_cache.publish(cache, MODEL, {name: weights / name for name in ("config.json", "model.safetensors")})
    for repository in (gpt2.NAME, gpt2.REPOSITORY):
        hub_cache.publish(cache, repository, gpt2.hub_files())
    data.mkdir()
    for name in ("ptb", "wikitext103"):
        (data / f"{name}.txt").write_text(SENTENCES * 2)
    (data / "openwebtext-train.jsonl").write_text((json.dumps({"text": SENTENCES}) + "\n") * 20)
    programs = Path(sys.executable).parent
    environment = {
        **hub_cache.environment(cache),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "HDLM_DATA_DIR": str(data),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTHONPATH", None)
    return Clone(tmp_path, environment)


def test_every_command_is_run_or_skipped_by_name(shared: Path) -> None:
    run = [*EVALUATIONS, *GENERATIONS, *TRAININGS, *FINETUNINGS, *OF_A_RUN]
    assert sorted(run) == sorted(COMMANDS)
    assert len(COMMANDS) == 7
    every = [command for document in DOCUMENTS for command in _commands(document)]
    assert set(SKIPPED) <= set(every)
    assert [len(_snippets(document)) for document in DOCUMENTS] == [0, 1]
    for document in DOCUMENTS:
        mentioned = len(
            re.findall(r"hdlm/(?:train|finetune|eval_generation|eval_modeling)\.py[ \\]", _document(document))
        )
        assert mentioned == sum(document == one for one, _ in COMMANDS)


def _results(folder: Path) -> Iterator[dict[str, object]]:
    return (json.loads(file.read_text()) for file in folder.rglob("results.json"))


@pytest.mark.slow
@pytest.mark.parametrize("command", _params_of(EVALUATIONS))
def test_published_perplexity_command_runs(clone: Clone, command: str) -> None:
    printed = clone.bash(command)
    (result,) = _results(clone.folder / "logs")
    measured = result["datasets"]["ptb"]["result"]  # type: ignore[index]
    assert len(measured["estimates"]) == 100
    assert measured["perplexity_error"] > 0
    assert f"{measured['perplexity']:.3f}" in printed


def _judge(folder: Path) -> dict[str, Path]:
    """A tiny causal model with GPT-2's vocabulary, in the place of the published judge."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2)).save_pretrained(folder)
    return {name: folder / name for name in ("config.json", "model.safetensors")}


@pytest.mark.slow
@pytest.mark.parametrize("command", _params_of(GENERATIONS))
def test_published_generation_command_runs(clone: Clone, command: str) -> None:
    hub_cache.publish(clone.folder / "hub", JUDGE, {**gpt2.hub_files(), **_judge(clone.folder / "judge")})
    printed = clone.bash(command)
    samples = json.loads((clone.folder / "logs" / "eval_generation" / "samples.json").read_text())
    assert len(samples) == 100
    assert {len(sample["tokens"]) for sample in samples} == {16}
    assert all(max(sample["tokens"]) < 50257 for sample in samples)
    (result,) = _results(clone.folder / "logs")
    metrics = result["result"]["metrics"]  # type: ignore[index]
    assert metrics["entropy"]["value"] > 0
    perplexity = metrics["generative perplexity"]
    assert perplexity["judge"] == JUDGE
    assert f"{perplexity['value']:.3f}"[:5] in printed


@pytest.mark.slow
@pytest.mark.parametrize("evaluation", _params_of(OF_A_RUN))
@pytest.mark.parametrize("command", _params_of(TRAININGS))
def test_published_training_and_perplexity_commands_run(clone: Clone, command: str, evaluation: str) -> None:
    clone.bash(command, **SMALL, **SMALL_NETWORK)
    run = clone.folder / RUN
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2]
    assert not [file for file in run.rglob("*") if file.name.startswith(".") and file.name != ".hydra"]
    (run / "checkpoints" / "checkpoint_2.pth").rename(run / "checkpoints" / "checkpoint_123456.pth")
    clone.bash(evaluation)
    (result,) = _results(clone.folder / "logs")
    assert result["datasets"]["ptb"]["result"]["perplexity"] > 1  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.parametrize("command", _params_of(FINETUNINGS))
def test_published_finetuning_command_runs(clone: Clone, command: str) -> None:
    printed = clone.bash(command, **SMALL)
    assert MODEL in printed
    assert (
        clone.folder / RUN.with_name("epsilon-hdlm-1-finetune") / "checkpoints" / "checkpoint_2.pth"
    ).is_file()


@pytest.mark.slow
def test_model_card_snippet_runs(clone: Clone) -> None:
    (snippet,) = _snippets(DOCUMENTS[1])
    printed = clone.run(sys.executable, "-c", snippet)
    assert "The future of artificial intelligence" in printed
