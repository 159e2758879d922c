"""`hdlm study`: the file, the jobs, the errors over seeds, and a run that is killed and resumed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from hdlm.checkpoint import load_checkpoint
from hdlm.cli import main
from hdlm.distributed import Processes
from hdlm.package_data import recipes
from hdlm.study import Study, StudyRun
from hdlm.study import jobs as study_jobs
from hdlm.study.budget import spent, steps_for
from hdlm.study.results import arm_differences, over_seeds, study_document
from hdlm.study.run import launched_part
from hdlm.training import Recipe
from hdlm.training.launch import recipe_file
from hdlm.view.study import study_sections, write_study

TINY = recipes() / "study" / "tiny.toml"
CPU = torch.device("cpu")
KEYS = ["c95692aa", "f60d0f45", "03a8480b"]


@pytest.fixture
def study():
    return Study.load(TINY)


def write(tmp_path, *changes):
    """The file of the tiny study with other lines."""
    text = TINY.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "study.toml"
    path.write_text(text)
    return path


def test_jobs_are_arms_by_seeds_by_budgets_and_measurements_follow_trainings(study) -> None:
    jobs = study.jobs()
    kinds = [job.kind for job in jobs]
    assert kinds[:5] == ["train"] * 5
    assert kinds[5:] == ["likelihood", "calibration", "generation", "repair"] * 4
    assert len({job.key for job in jobs}) == len(jobs)
    generations = [job for job in jobs if job.kind == "generation"]
    assert [bool(job.spec["controls"]) for job in generations] == [True, False, False, False]
    assert all([need.kind for need in job.needs] == ["train", "train"] for job in generations)


def test_a_sampler_with_arms_samples_the_models_of_these_arms_alone(tmp_path) -> None:
    one = ("evaluations = [4]", 'evaluations = [4]\narms = ["epsilon 0.1"]')
    jobs = Study.load(write(tmp_path, one)).jobs()
    sampled = [job.labels["arm"] for job in jobs if job.kind in ("generation", "repair")]
    assert sampled == ["epsilon 0.1"] * 4
    controls = [bool(job.spec["controls"]) for job in jobs if job.kind == "generation"]
    assert controls == [True, False]
    everywhere = {job.key for job in Study.load(TINY).jobs()}
    assert {job.key for job in jobs if job.kind == "repair"} < everywhere


def test_a_job_has_another_folder_if_anything_that_it_depends_on_differs(study, tmp_path) -> None:
    before = {job.name: job.folder(tmp_path) for job in study.jobs()}
    other = replace(study, judges=(replace(study.judges[0], tokens=4096.0),))
    after = {job.name: job.folder(tmp_path) for job in other.jobs()}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if name.startswith(("judge", "generation"))}


def test_parts_share_all_jobs_and_keep_those_of_a_model_together(study, tmp_path) -> None:
    jobs = study.jobs()
    parts = [StudyRun(study, tmp_path, CPU, Processes(3, rank)).own(jobs) for rank in range(3)]
    assert sorted(job.name for part in parts for job in part) == sorted(job.name for job in jobs)
    for part in parts:
        here = {job.name for job in part}
        assert all(job.needs[0].name in here for job in part if job.needs)


CONTINUED = """
title = "A causal model, converted in two ways"
seeds = [0, 1]
tokens = [128, 256]

[recipe]
process = { type = "Absorbing" }
objective = { type = "MaskedCrossEntropy" }
mixture = [{ hyperschedule = { type = "Block" , num_levels = 16 }, two_stream = false, continuous = true }]
data = { corpus = ["TEXT"], vocabulary = 290, context = 16, validation = 0.1 }
network = { hidden_size = 16, num_blocks = 1, num_heads = 2 }
optimizer = { matrix_rate = 1e-9, embedding_rate = 1e-9, head_rate = 1e-9, ema = 0.0 }
run = { batch_size = 8, precision = "no" }

[[arms]]
name = "causal"
tokens = 512
parameterization = { type = "Shifted", inner = { type = "Mean" } }
mixture = [{ hyperschedule = { type = "Block", width = 1, num_levels = 1 } }]
optimizer = { matrix_rate = 0.02, embedding_rate = 0.005, head_rate = 0.005 }

[[arms]]
name = "shifted, flat"
start = "causal"
parameterization = { type = "Shifted", inner = { type = "Mean" } }

[[arms]]
name = "aligned, flat"
start = "causal"
parameterization = { type = "Mean" }

[measure]
likelihood = { replicates = 2, limit = 64 }
"""


@pytest.fixture
def continued(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{n} bottles of beer on the wall, {n} bottles of beer." for n in range(99)))
    path = tmp_path / "continued.toml"
    path.write_text(CONTINUED.replace("TEXT", str(text)))
    return Study.load(path)


def test_key_of_a_job_depends_on_its_options_and_not_on_how_they_are_written(study, tmp_path) -> None:
    def keys(*changes: tuple[str, str]) -> list[str]:
        return [job.key for job in Study.load(write(tmp_path, *changes)).jobs()]

    usual = [job.key for job in study.jobs()]
    assert keys(("[recipe.run]", "[recipe.watch]\nlog_every = 7\n[recipe.run]")) == usual
    assert keys(("[recipe.run]", "[recipe.lora]\nrank = 0\n[recipe.run]")) == usual
    assert set(keys(("[recipe.run]", "[recipe.optimizer]\nbeta2 = 0.99\n[recipe.run]"))).isdisjoint(usual)


def test_key_of_a_job_is_stable_across_versions(study) -> None:
    """A new version that adds an option must find the results of an earlier one."""
    assert [job.key[:8] for job in study.jobs()][:3] == KEYS


def test_an_equal_job_of_another_name_has_the_same_folder(study, tmp_path) -> None:
    first = study.jobs()[1]
    first.folder(tmp_path).mkdir(parents=True)
    assert replace(first, name="train/another name").folder(tmp_path) == first.folder(tmp_path)


def test_an_arm_that_continues_another_one_needs_its_training_of_the_same_seed(continued) -> None:
    trainings = [job for job in continued.jobs() if job.kind == "train"]
    own = {job.labels["seed"]: job for job in trainings if job.labels["arm"] == "causal"}
    assert [job.labels["budget"] for job in own.values()] == ["512 tokens"] * 2
    later = [job for job in trainings if job.labels["arm"] != "causal"]
    assert [job.labels["budget"] for job in later] == ["128 tokens"] * 4 + ["256 tokens"] * 4
    assert all(job.needs == (own[job.labels["seed"]],) for job in later)
    causal = replace(continued.arms[0], tokens=1024.0)
    other = replace(continued, arms=(causal, *continued.arms[1:])).jobs()
    assert {job.key for job in other}.isdisjoint(job.key for job in continued.jobs())


def test_an_arm_that_continues_another_one_begins_with_its_weights(continued, tmp_path) -> None:
    causal, later = [job for job in continued.jobs() if job.labels["seed"] == 0][:2]
    for job in (causal, later):
        job.perform(tmp_path, CPU, progress=False)
    before, after = [load_checkpoint(job.folder(tmp_path) / "run", CPU) for job in (causal, later)]
    assert before.hyperschedules[0].is_autoregressive
    assert not after.hyperschedules[0].is_autoregressive
    weights = after.network.state_dict()
    for name, value in before.network.state_dict().items():  # the second learning rate changes nothing
        torch.testing.assert_close(weights[name], value, atol=1e-6, rtol=0.0)


def likelihoods(*budgets):
    """Rows of four arms with two parts and of one arm with another name."""
    values = {
        "aligned, opened": [2.0, 3.0],
        "shifted, opened": [1.5, 2.4],
        "aligned, growing": [2.2, 3.3],
        "shifted, growing": [1.9, 3.0],
        "scratch": [9.0, 9.0],
    }
    return [
        {
            "kind": "likelihood",
            "arm": arm,
            "budget": budget,
            "text": "validation",
            "metrics": {
                "bits per byte": {
                    **over_seeds([{"value": value, "error": 0.1} for value in own]),
                    "values": dict(zip("01", own, strict=True)),
                }
            },
        }
        for budget in budgets
        for arm, own in values.items()
    ]


def test_differences_average_over_all_other_parts_and_compare_seed_by_seed() -> None:
    by_parts = {(entry["of"], entry["minus"]): entry for entry in arm_differences(likelihoods("1 tokens"))}
    assert set(by_parts) == {("shifted", "aligned"), ("opened", "growing")}
    shifted = by_parts["shifted", "aligned"]
    assert shifted["values"] == {"0": pytest.approx(-0.4), "1": pytest.approx(-0.45)}
    assert shifted["mean"] == pytest.approx(-0.425)
    assert shifted["between"] == pytest.approx(0.025)
    assert (shifted["least"], shifted["most"]) == (pytest.approx(-0.55), pytest.approx(-0.3))
    assert (shifted["pairs"], shifted["budget"]) == (2, "1 tokens")


def test_arms_at_different_budgets_are_not_compared() -> None:
    rows = likelihoods("1 tokens", "2 tokens")
    assert arm_differences(rows[:1] + rows[6:7]) == []
    assert arm_differences(rows) == arm_differences(rows[:5]) + arm_differences(rows[5:])


@pytest.mark.parametrize("budgets", [("1 tokens", "2 tokens"), ("1 tokens",)])
def test_likelihoods_over_several_budgets_have_a_picture(budgets, tmp_path) -> None:
    rows = likelihoods(*budgets)
    numbers = {"parameters": 1, "steps": 1, "tokens": 64.0, "flops": 1.0, "seconds": 1.0}
    trained = [
        {"kind": "train", "arm": row["arm"], "budget": row["budget"], **numbers}
        | {"tokens": 64.0 * int(row["budget"][0])}
        for row in rows
    ]
    document = {
        "title": "Two parts",
        "description": "",
        "seeds": [0, 1],
        "rows": trained + rows,
        "differences": arm_differences(rows),
        "controls": {},
        "failed": [],
        "missing": [],
    }
    write_study(tmp_path, document)
    report = (tmp_path / "report.md").read_text()
    assert "| shifted - aligned | -0.425 ± 0.025" in report
    assert ("(likelihood.png)" in report) == (len(budgets) > 1) == (tmp_path / "likelihood.png").is_file()


def recipe_with(two_stream, warm):
    table = Study.load(TINY).recipe
    mixture = [
        {
            "share": 0.75,
            "hyperschedule": {"type": "Block", "width": 4, "num_levels": 2},
            "two_stream": two_stream,
        },
        {"share": 0.25, "hyperschedule": {"type": "Block", "width": 16, "num_levels": 4}, "batch_scale": 2},
    ]
    more = {"process": {"type": "Absorbing"}, "mixture": mixture}
    return Recipe.from_table(
        {
            **table,
            **more,
            "run": {**table["run"], "steps": 40},
            **({"warm_start": {"share": warm}} if warm else {}),
        }
    )


@pytest.mark.parametrize("warm", [0.0, 0.5])
@pytest.mark.parametrize("unit", ["tokens", "flops"])
def test_steps_for_a_budget_spend_that_budget(unit, warm) -> None:
    recipe = recipe_with(True, warm)
    budget = float(getattr(spent(recipe, 777), unit))
    steps = steps_for(recipe, budget, unit)
    assert getattr(spent(recipe, steps), unit) == pytest.approx(budget, rel=0.01)
    assert spent(recipe, steps).flops > spent(recipe_with(False, warm), steps).flops


def test_mean_and_both_errors_over_seeds() -> None:
    entries = [{"value": 1.0, "error": 0.3}, {"value": 2.0, "error": 0.4}]
    found = over_seeds(entries)
    assert found == {
        "mean": 1.5,
        "between": pytest.approx(math.sqrt(0.5) / math.sqrt(2)),
        "within": pytest.approx(0.25),
        "seeds": 2,
    }
    assert over_seeds(entries[:1])["between"] is None
    assert over_seeds([entries[0], {"failed": "too short"}])["seeds"] == 1
    assert over_seeds([{"failed": "too short"}])["failed"] == "too short"
    assert over_seeds([{"value": 1.0, "error": None}])["within"] is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('type = "CrossEntropy"', 'type = "CrosEntropy"', "CrosEntropy"),
        ("seeds = [0, 1]", "seeds = []", "at least one seed"),
        ("tokens = [2048]", "", "at least one budget"),
        ('name = "epsilon 0.1"', 'name = "absorbing"', "names that differ"),
        ("eta = 0.5", "etta = 0.5", "eta"),
        ("evaluations = [4]", "evaluations = [4]\nsteps = 2", "evaluations has it"),
        ("evaluations = [4]", 'evaluations = [4]\narms = ["gidd"]', "samplers.arms.*names of arms.*gidd"),
        ("share = 0.2", "part_ = 1", "measure.repair"),
        ('corpus = ["pydoc_topics"]', 'corpus = ["$NOT_SET_HERE/book.txt"]', "NOT_SET_HERE"),
        ("tokens = 2048\n", "", "either tokens or a source"),
        (
            'name = "epsilon 0.1"',
            'name = "later"\nstart = "absorbing"',
            "earlier arm with `tokens` of its own",
        ),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, old, new, message) -> None:
    with pytest.raises(ValueError, match=message):
        Study.load(write(tmp_path, (old, new))).jobs()


@pytest.mark.parametrize("name", sorted(path.stem for path in TINY.parent.glob("*.toml")))
def test_studies_that_ship_can_be_planned(name, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HDLM_SHARED", str(tmp_path))
    study = Study.load(recipe_file(f"study/{name}"))
    assert len(study.seeds) >= 2
    jobs = replace(study, seeds=study.seeds[:1]).jobs()
    kinds = {job.kind for job in jobs}
    if name == "conversion":  # it measures likelihoods only
        assert kinds == {"train", "likelihood"}
        begun = {job.labels["arm"] for job in jobs if job.kind == "train" and not job.needs}
        assert begun == {"causal", "scratch"}
        return
    assert {"train", "generation"} <= kinds
    if name != "tiny":
        assert len(study.judges) == 2


def test_a_failed_job_is_written_down_and_the_others_continue(study, tmp_path, monkeypatch) -> None:
    def train(*, recipe, output, **_):
        if recipe["process"]["type"] == "Absorbing":
            raise RuntimeError("out of memory")
        raise ValueError("no text")

    monkeypatch.setattr(study_jobs.workflows, "train", train)
    lines: list[str] = []
    document = StudyRun(study, tmp_path, CPU, report=lines.append).perform()
    reasons = {entry["job"]: entry["reason"] for entry in document["failed"]}
    assert reasons["train/absorbing/2048 tokens/seed 0"] == "out of memory"
    assert reasons["train/epsilon 0.1/2048 tokens/seed 1"] == "no text"
    assert "has failed, and this job needs it" in reasons["repair/epsilon 0.1/2048 tokens/seed 1/acs/4"]
    assert len(reasons) == len(study.jobs()) == sum("failed" in line for line in lines)
    assert "out of memory" in study_sections(document)["Failed"]


def test_a_part_waits_for_a_judge_of_another_part(study, tmp_path) -> None:
    lines: list[str] = []
    judge, *trainings = [job for job in study.jobs() if job.kind == "train"]
    for training in trainings:
        folder = training.folder(tmp_path)
        folder.mkdir(parents=True)
        (folder / "job.json").write_text(
            '{"parameters": 1, "steps": 1, "tokens": 1, "flops": 1, "seconds": 1}'
        )
    job = next(job for job in study.jobs() if job.kind == "generation")
    StudyRun(study, tmp_path, CPU, Processes(2, 1), report=lines.append)._perform(job, "[1/1]")
    assert "waits for judge/judge a, which another part makes" in lines[0]
    assert {job.name, judge.name} <= set(study_document(study, study.jobs(), tmp_path)["missing"])


def test_a_launch_gives_each_process_a_part(monkeypatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched_part() == (Processes(), None)
    for name, value in {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert launched_part() == (Processes(4, 2), 1)
    assert "RANK" not in os.environ


def test_dry_run_lists_jobs_with_costs(tmp_path, capsys) -> None:
    command = ["study", "study/tiny", "--output", str(tmp_path), "--dry-run", "--device", "cpu"]
    assert main([*command, "--json"]) == 0
    jobs = json.loads(capsys.readouterr().out)
    assert {job["state"] for job in jobs} == {"to do"}
    assert jobs[0]["tokens"] == 2048
    assert all(job["flops"] > 0 and job["seconds"] > 0 for job in jobs)
    assert main([*command, "--part", "1/5"]) == 0
    assert "about" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_study_resumes_and_repeats_nothing(tmp_path, capsys) -> None:
    path = write(
        tmp_path,
        ("seeds = [0, 1]", "seeds = [0]"),
        ("batch_size = 8", "batch_size = 8\nsave_steps = 2"),
        ("tokens = [2048]", "tokens = [4096]"),
    )
    output = tmp_path / "out"
    command = ["study", str(path), "--output", str(output), "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-m", "hdlm", *command], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(output.glob("train/epsilon*/run/training/step-*/state.json")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = {file.parent.name: file.stat().st_mtime_ns for file in output.glob("train/*/job.json")}
    assert "judge" in " ".join(begun)
    assert not list(output.glob("repair/*/job.json"))
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.err.count("done before") == len(begun)
    assert all((output / "train" / name / "job.json").stat().st_mtime_ns == at for name, at in begun.items())
    document = json.loads((output / "results.json").read_text())
    assert not document["failed"]
    assert not document["missing"]
    kinds = [row["kind"] for row in document["rows"]]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "train": 3,
        "likelihood": 2,
        "calibration": 2,
        "generation": 2,
        "repair": 2,
    }
    trained = [row for row in document["rows"] if row["kind"] == "train" and "arm" in row]
    for row, log in zip(trained, sorted(output.glob("train/*tokens*/run/metrics.jsonl")), strict=True):
        assert json.loads(log.read_text().splitlines()[-1])["tokens"] == row["tokens"] == 4096
    assert set(document["controls"]) == {"repeat", "unigram", "shuffle", "data"}
    samples = next(row for row in document["rows"] if row["kind"] == "generation")
    assert samples["metrics"]["nats per token, judge a"]["within"] > 0
    assert "Repair of planted errors" in (output / "report.md").read_text()
    assert (output / "quality.png").stat().st_size > 10_000
    assert main([*command, "--report"]) == 0
