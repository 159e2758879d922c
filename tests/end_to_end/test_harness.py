"""A model of hdlm runs tasks of `lm_eval` with local tasks and data.

`lm_eval` is in no extra that the tests install (it brings 150 MB): `pip install -c constraints.txt "hdlm[harness]"`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("lm_eval") is None,
        reason='lm_eval is not installed: pip install -c constraints.txt "hdlm[harness]"',
    ),
]

CHOICES = """
task: who
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/who.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ROLLING = """
task: verses
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/verses.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
"""
WRITING = """
task: goes_on
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/who.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["."], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
"""
TASKS = {"who": CHOICES, "verses": ROLLING, "goes_on": WRITING}
QUESTIONS = [
    {"question": "And God said unto", "choices": ["Moses", "teeth"], "answer": 0},
    {
        "question": "In the beginning God created the",
        "choices": ["of of", "heaven and the earth"],
        "answer": 1,
    },
    {"question": "And it came to", "choices": ["pass", "Jerusalem because"], "answer": 0},
]
VERSES = [{"text": "In the beginning God created the heaven and the earth."}, {"text": "Jesus wept."}]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    for name, text in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(text.replace("FOLDER", str(tmp_path)))
    for name, rows in (("who", QUESTIONS), ("verses", VERSES)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    offline: Mapping[str, str] = {
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **offline},
    )


def test_eval_harness_runs_tasks_of_a_folder(tasks: Path) -> None:
    output = tasks / "result"
    asked = [
        "-m",
        "hdlm",
        "eval",
        "harness",
        "kjv-epsilon-4m",
        "--include-path",
        str(tasks),
        "--tasks",
        *TASKS,
    ]
    done = run([*asked, "--device", "cpu", "--replicates", "64", "--output", str(output)], tasks)
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads((output / "results.json").read_text())
    task_scores = document["result"]["results"]
    assert task_scores["who"]["acc,none"] == 1.0
    assert 0.5 < task_scores["verses"]["bits_per_byte,none"] < 8
    assert 0 <= task_scores["goes_on"]["exact_match,none"] <= 1
    assert (document["kind"], document["result"]["protocol"]["replicates"]) == ("harness", 64)
    for text in (done.stdout, (output / "report.md").read_text()):
        assert "| task " in text
        assert "| who " in text
    assert set(document["result"]["questions_sha256"]) == set(TASKS)


def test_eval_harness_runs_task_file(tasks: Path) -> None:
    asked = ["-m", "hdlm", "eval", "harness", "kjv-epsilon-4m", "--tasks", str(tasks / "who.yaml"), "--json"]
    done = run([*asked, "--device", "cpu", "--limit", "2", "--hyperschedule", "autoregressive"], tasks)
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(done.stdout)
    assert document["result"]["n-samples"]["who"]["effective"] == 2
    assert document["result"]["protocol"]["estimator"] == "exact"
    first = document["result"]["questions_sha256"]
    (tasks / "who.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS[1:]))
    done = run([*asked, "--device", "cpu", "--limit", "2", "--hyperschedule", "autoregressive"], tasks)
    assert json.loads(done.stdout)["result"]["questions_sha256"] != first


def test_eval_harness_rejects_unknown_task_without_traceback(tasks: Path) -> None:
    asked = [
        "-m",
        "hdlm",
        "eval",
        "harness",
        "kjv-epsilon-4m",
        "--tasks",
        "whose",
        "--include-path",
        str(tasks),
    ]
    done = run(asked, tasks)
    assert done.returncode != 0
    assert "there is no task whose" in done.stderr
    assert "Traceback" not in done.stderr


SCRIPT = """
import lm_eval
from lm_eval.api.registry import get_model, model_registry
from lm_eval.tasks import TaskManager
from hdlm.checkpoint import load_checkpoint
from hdlm.integrations.lm_eval import HDLM
from hdlm.package_data import pretrained

assert get_model("hdlm") is HDLM and "hf" in model_registry and "dummy" in model_registry
local = TaskManager(include_path="FOLDER", include_defaults=False)
folder = pretrained() / "kjv-epsilon-4m"
ask = dict(tasks=["who"], task_manager=local, bootstrap_iters=0)
made = lm_eval.simple_evaluate(model=HDLM(load_checkpoint(folder), replicates=64), **ask)
named = lm_eval.simple_evaluate(model="hdlm", model_args={"checkpoint": str(folder), "replicates": 64}, **ask)
assert made["results"]["who"]["acc,none"] == named["results"]["who"]["acc,none"] == 1.0
assert named["config"]["bound"] == "absorbing"
says = [[answer for answer in sample["filtered_resps"]] for run in (made, named) for sample in run["samples"]["who"]]
assert says[:3] == says[3:]
print("done")
"""


def test_simple_evaluate_accepts_model_object_and_name(tasks: Path) -> None:
    done = run(["-c", SCRIPT.replace("FOLDER", str(tasks))], tasks)
    assert done.stdout.strip().endswith("done"), done.stderr[-2000:]
