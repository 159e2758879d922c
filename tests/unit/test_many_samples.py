"""Many samples: each index has fixed tokens for any batch size, number of processes and interrupts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hdlm import Settings, load, write
from hdlm.cli import main
from hdlm.distributed import Processes
from hdlm.evaluation.generation.samples import draw_samples
from hdlm.generation import Ending
from hdlm.noise_schedule import Cosine
from hdlm.package_data import pretrained
from hdlm.sampling import ApproximateCache

MODEL = "kjv-epsilon-4m"
SHORT = Settings(algorithm="original", hyperschedule="flat", steps=3, length=8)
OPTIONS = [
    "--algorithm",
    "original",
    "--hyperschedule",
    "flat",
    "--steps",
    "3",
    "--length",
    "8",
    "--seed",
    "3",
]


@pytest.fixture(scope="module")
def checkpoint():
    return load(pretrained() / MODEL)


@pytest.fixture(scope="module")
def wanted(checkpoint):
    """The expected tokens of each index."""
    return [list(one.tokens) for one in write(checkpoint, "", SHORT, num=7, seed=3)]


def stored_indices(path: Path) -> list[int]:
    return [json.loads(line)["index"] for line in path.read_bytes().split(b"\n")[1:-1]]


def tokens(samples):
    return [one.tokens for one in samples]


def test_draw_samples_rewrites_truncated_line(checkpoint, wanted, tmp_path):
    keep = tmp_path / "samples.jsonl"
    begin = time.perf_counter()
    drawn = draw_samples(checkpoint, SHORT, num=4, seed=3, batch_size=2, keep=keep)
    assert sum(one.seconds for one in drawn) < time.perf_counter() - begin
    whole = keep.read_bytes()
    for torn in (b"", whole[:-1], whole[:-5], whole[:-60], whole + b'{"index": 4, "text": "' + b"x" * 9999):
        keep.write_bytes(torn)
        found = draw_samples(checkpoint, SHORT, num=5, seed=3, batch_size=3, keep=keep)
        assert tokens(found) == wanted[:5]
        assert stored_indices(keep) == [0, 1, 2, 3, 4]
        assert keep.read_bytes().endswith(b"}\n")
    kept = keep.stat().st_mtime_ns
    assert tokens(draw_samples(checkpoint, SHORT, num=5, seed=3, keep=keep)) == wanted[:5]
    assert keep.stat().st_mtime_ns == kept, "what is there is not touched"


def test_draw_samples_resumes_with_other_number_of_processes(checkpoint, wanted, tmp_path, monkeypatch):
    """The processes run one after the other and write the files that they would write in parallel."""
    keep = tmp_path / "samples.jsonl"
    monkeypatch.setattr(Processes, "wait", lambda processes: None)
    with pytest.raises(KeyError):  # the others have not written theirs
        draw_samples(checkpoint, SHORT, num=7, seed=3, batch_size=2, keep=keep, processes=Processes(3, 1))
    part = tmp_path / "samples.jsonl.part-1"
    assert stored_indices(part) == [2, 3]
    assert not keep.exists()
    with pytest.raises(KeyError):
        draw_samples(checkpoint, SHORT, num=7, seed=3, batch_size=2, keep=keep, processes=Processes(3, 0))
    assert stored_indices(keep) == [0, 1, 2, 3, 6]
    assert not part.exists()
    found = draw_samples(checkpoint, SHORT, num=7, seed=3, batch_size=5, keep=keep)
    assert tokens(found) == wanted
    assert sorted(stored_indices(keep)) == list(range(7))
    with pytest.raises(ValueError, match="collect their samples in a file"):
        draw_samples(checkpoint, SHORT, num=1, processes=Processes(2, 0))


def test_samples_recorded_before_a_setting_existed_are_resumed(checkpoint, tmp_path):
    keep = tmp_path / "samples.jsonl"
    draw_samples(checkpoint, SHORT, num=1, seed=3, keep=keep)
    first, *rest = keep.read_text().splitlines()
    made_with = json.loads(first)
    del made_with["settings"]["sub_block"], made_with["settings"]["new_tokens"]
    keep.write_text("\n".join([json.dumps(made_with), *rest, ""]))
    draw_samples(checkpoint, SHORT, num=2, seed=3, keep=keep)
    assert sorted(stored_indices(keep)) == [0, 1]


def test_sample_output_refuses_file_of_other_settings(checkpoint, tmp_path, capsys):
    keep = tmp_path / "samples.jsonl"
    command = ["sample", MODEL, *OPTIONS, "--num-sequences", "2", "--device", "cpu", "-o", str(keep)]
    assert main(command) == 0
    assert f"{keep}: 2 passages" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"made with other settings \(settings, seed differ\)"):
        draw_samples(checkpoint, replace(SHORT, eta=0.1), num=1, seed=4, keep=keep)
    with pytest.raises(
        ValueError, match=r"made with other settings \(noise_schedule, tokenizer_sha256 differ\)"
    ):
        draw_samples(
            replace(checkpoint, noise_schedule=Cosine(), tokenizer_json=f"{checkpoint.tokenizer_json} "),
            SHORT,
            num=2,
            seed=3,
            keep=keep,
        )
    assert main([*command, "--prompt", "And"]) == 2
    assert main([*command, "--stop", "."]) == 2
    assert "made with other settings (ending differ)" in capsys.readouterr().err
    assert main([*command, "--approximate-cache", "all:2"]) == 2
    assert "made with other settings (approximate differ)" in capsys.readouterr().err
    assert main([*command, "--explain"]) == 2
    assert "leave --output out" in capsys.readouterr().err
    keep.write_text("my diary")
    assert main(command) == 2
    assert keep.read_text() == "my diary"


def test_draw_samples_equals_write_with_ending_and_approximate_cache(checkpoint, tmp_path):
    ways = {"ending": Ending(strings=("the",)), "approximate": ApproximateCache(2, active=True)}
    wanted = write(checkpoint, "And", SHORT, num=4, seed=3, **ways)
    for batch_size in (1, 3):
        keep = tmp_path / f"{batch_size}.jsonl"
        found = draw_samples(
            checkpoint, SHORT, prompt="And", num=4, seed=3, batch_size=batch_size, keep=keep, **ways
        )
        assert [(one.text, one.tokens) for one in found] == [(one.text, list(one.tokens)) for one in wanted]
    assert min(map(len, tokens(found))) < SHORT.length
    with pytest.raises(ValueError, match="depend on one another"):
        draw_samples(checkpoint, replace(SHORT, guidance=1.0), prompt="And", num=2, **ways)


@pytest.mark.slow
def test_sample_command_resumes_after_sigkill(wanted, tmp_path, repository):
    keep = tmp_path / "samples.jsonl"
    command = [
        sys.executable,
        "-m",
        "hdlm",
        "sample",
        MODEL,
        *OPTIONS,
        "--batch-size",
        "1",
        "--device",
        "cpu",
    ]
    command += ["-o", str(keep)]
    running = subprocess.Popen([*command, "--num", "5000"], cwd=repository, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not keep.exists() or keep.read_bytes().count(b"\n") < 4:
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    there = keep.read_bytes().count(b"\n") - 1
    assert 3 <= there < 5000
    again = subprocess.run(
        [*command, "--num", str(there + 2)], cwd=repository, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    lines = [json.loads(line) for line in keep.read_bytes().split(b"\n")[1:-1]]
    assert [line["index"] for line in lines] == list(range(there + 2))
    assert [line["tokens"] for line in lines[:3]] == wanted[:3]


@pytest.mark.slow
def test_sample_command_with_two_processes_equals_one(wanted, tmp_path, repository):
    pytest.importorskip("accelerate")
    keep = tmp_path / "samples.jsonl"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    launch += [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    sampling = ["-m", "hdlm", "sample", MODEL, *OPTIONS, "--num", "7", "--batch-size", "2", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *sampling, "-o", str(keep)], cwd=repository, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("7 passages") == 1
    lines = [json.loads(line) for line in keep.read_bytes().split(b"\n")[1:-1]]
    assert [line["index"] for line in lines] == list(range(7))
    assert [line["tokens"] for line in lines] == wanted
    assert list(tmp_path.iterdir()) == [keep]
