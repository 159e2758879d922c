"""`hdlm eval likelihood`: output files, resuming after an interrupt, and rejected options."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hdlm.checkpoint import Checkpoint, save_checkpoint
from hdlm.cli import main
from hdlm.data import train_tokenizer
from hdlm.distributed import Processes
from hdlm.evaluation import LikelihoodResult, estimate_likelihood, windows
from hdlm.evaluation.likelihood.defaults import plan_of
from hdlm.evaluation.likelihood.estimator import Likelihood
from hdlm.evaluation.likelihood.resumable import BatchSize
from hdlm.evaluation.likelihood.windows import WindowedText
from hdlm.evaluation.records import protocol
from hdlm.evaluation.text import find_text, tokenize_documents
from hdlm.hyperschedule import Block, PublishedWave, Slide, Wave, autoregressive, flat
from hdlm.process import EpsilonHybrid, Uniform
from hdlm.published import eval_modeling as modeling
from hdlm.regime import Regime
from hdlm.view.likelihood import interval, likelihood_table, write_likelihood
from tests.tiny import tiny_denoiser

LENGTH = 8
SENTENCES = ["Some words, and some more.", "Other words.", "And again some words of another kind."]


@pytest.fixture
def hdlm(capsys):
    """Run `hdlm eval likelihood`; the answer is (exit status, standard output, standard error)."""

    def run(*words: object) -> tuple[int, str, str]:
        return main(["eval", "likelihood", *(str(word) for word in words)]), *capsys.readouterr()

    return run


@pytest.fixture
def checkpoint() -> Checkpoint:
    tokenizer = train_tokenizer(["some words, and some more"], 270)
    denoiser = tiny_denoiser(EpsilonHybrid(tokenizer.vocabulary.num_words, 0.1)).float().eval()
    denoiser.backbone.config = dataclasses.replace(denoiser.backbone.config, max_length=LENGTH)
    trained = (Block(LENGTH, 4, 2), Slide(LENGTH, 4, 4))
    return Checkpoint(
        denoiser, tokenizer.vocabulary, hyperschedules=trained, tokenizer_json=tokenizer.to_json()
    )


@pytest.fixture
def model(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "model", checkpoint)
    return tmp_path / "model"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"text": sentence}) + "\n" for sentence in SENTENCES))
    return file


def test_eval_likelihood_equals_estimate_likelihood(
    hdlm, checkpoint: Checkpoint, model: Path, data: Path
) -> None:
    status, printed, _ = hdlm(model, "--data", data, "--replicates", 3, "--seed", 4, "--json")
    document = json.loads(printed)[str(data)]
    text = tokenize_documents(checkpoint.tokenizer, SENTENCES)
    expected = estimate_likelihood(
        checkpoint.denoiser,
        WindowedText(text.tokens, Block(LENGTH, 4, 2).length, num_bytes=text.num_bytes),
        Regime(Block(LENGTH, 4, 2)),
        replicates=3,
        seed=4,
    )
    assert status == 0
    assert document["result"]["estimates"] == pytest.approx(expected.estimates, rel=1e-5)
    assert document["result"]["bits_per_byte"] == pytest.approx(expected.bits_per_byte, rel=1e-5)
    assert document["data"] == {
        "name": str(data),
        "part": "all",
        "sha256": protocol.text_sha256(SENTENCES),
        "documents": 3,
        "bytes": sum(map(len, SENTENCES)),
        "words": 14,
        "detokenizer": None,
    }
    assert document["weights_sha256"] == protocol.weights_sha256(checkpoint.network)
    assert (document["dtype"], document["device"], document["weights"]) == ("float32", "cpu", "averaged")


def test_eval_likelihood_writes_results_report_and_picture(
    hdlm, model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    status, printed, _ = hdlm(model, "--data", data, "--replicates", 5, "--output", out)
    assert status == 0
    result = LikelihoodResult.from_dict(protocol.read_result(out / "results.json")["result"])
    assert f"{result.perplexity:,.3f} ± {result.perplexity_error:,.3f}" in printed
    report = (out / "report.md").read_text()
    assert f"{result.bits_per_byte:.5f} ± {result.bits_per_byte_error:.5f}" in report
    assert f"{math.exp(result.nats / 14):.3e} ± " in report
    for said in ("Block(length=8, width=4, num_levels=2)", "weights_sha256", "arXiv:2504.06416", "w / k"):
        assert said in report
    assert (out / "replicates.png").read_bytes().startswith(b"\x89PNG")


def test_eval_likelihood_resumes_after_interrupt(
    hdlm, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [model, "--data", data, "--replicates", 7, "--json", "--output"]
    whole = json.loads(hdlm(*words, tmp_path / "whole")[1])[str(data)]["result"]
    monkeypatch.setattr("hdlm.evaluation.likelihood.resumable._PIECE", 1)
    measure, done = Likelihood.of_text, []

    def dies(self: Likelihood, text: WindowedText, count: int, **options: Any) -> LikelihoodResult:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(options["first_replicate"])
        return measure(self, text, count, **options)

    monkeypatch.setattr(Likelihood, "of_text", dies)
    assert hdlm(*words, tmp_path / "parts")[0] == 130
    kept = protocol.read_result(tmp_path / "parts" / "results.json")
    assert len(kept["result"]["estimates"]) == 3
    assert (tmp_path / "parts" / "report.md").exists()
    done[:] = [-1] * 4
    parts = json.loads(hdlm(*words, tmp_path / "parts")[1])[str(data)]
    assert done[4:] == [3, 4, 5, 6]
    assert parts["result"]["estimates"] == pytest.approx(whole["estimates"], rel=1e-6)
    assert parts["wall_seconds"] > kept["wall_seconds"]


def test_eval_modeling_keeps_all_data_sets_after_interrupts(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Some other words.")

    def measured(replicates: int) -> dict[str, dict[str, object]]:
        words = ["--checkpoint_path", model, "--work_dir", tmp_path / "w", "--datasets", data, other]
        words += ["--device", "cpu", "--monte_carlo_timesteps", replicates]
        assert modeling.eval_modeling([str(word) for word in words]) == 0
        return json.loads((tmp_path / "w" / "results.json").read_text())["datasets"]

    def killed(path: Path, content: object) -> None:
        write_json(path, content)
        raise KeyboardInterrupt

    write_json, before = modeling.write_json, measured(2)
    with monkeypatch.context() as patched:
        patched.setattr(modeling, "write_json", killed)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                measured(3)
    left = json.loads((tmp_path / "w" / "results.json").read_text())["datasets"]
    assert left[str(other)] == before[str(other)]
    assert len(measured(3)[str(other)]["result"]["estimates"]) == 3
    begun, measure = [], Likelihood.of_text

    def counted(self: Likelihood, text: WindowedText, count: int, **options: Any) -> object:
        begun.append(options["first_replicate"])
        return measure(self, text, count, **options)

    monkeypatch.setattr(Likelihood, "of_text", counted)
    assert len(measured(4)[str(other)]["result"]["estimates"]) == 4
    assert begun == [3, 3], "what is known is not measured again"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--seed", "1"], "seed was 0, now 1"),
        (["--stride", "2"], "result.stride was 8, now 2"),
        (["--documents"], "result.within_documents was False, now True"),
        (["--dtype", "float64"], "dtype was 'float32', now 'float64'"),
        (["--limit", "9"], "data.sha256"),
        (["--hyperschedule", "flat"], "result.hyperschedule"),
    ],
)
def test_eval_likelihood_refuses_folder_of_other_protocol(
    hdlm, model: Path, data: Path, tmp_path: Path, changed: list[str], said: str
) -> None:
    words = [model, "--data", data, "--replicates", 2, "--output", tmp_path / "out"]
    assert hdlm(*words)[0] == 0
    before = (tmp_path / "out" / "results.json").read_bytes()
    status, _, complaint = hdlm(*words, *changed)
    assert status == 2
    assert said in complaint
    assert "another output folder" in complaint
    assert (tmp_path / "out" / "results.json").read_bytes() == before


def test_eval_likelihood_reaches_target_stderr_and_rejects_negative(hdlm, model: Path, data: Path) -> None:
    status, printed, _ = hdlm(
        model, "--data", data, "--target-stderr", 0.2, "--estimator", "random", "--json"
    )
    assert status == 0
    assert json.loads(printed)[str(data)]["result"]["bits_per_token_error"] <= 0.2
    status, _, complaint = hdlm(model, "--data", data, "--target-stderr", -1)
    assert status == 2
    assert "positive" in complaint


def test_eval_likelihood_of_several_data_sets_writes_folders_and_reports_failure(
    hdlm, model: Path, tmp_path: Path
) -> None:
    for name in ("ptb", "text8"):
        (tmp_path / f"{name}.txt").write_text(SENTENCES[0])
    words = [model, "--data", "ptb", "lambada", "text8", "--data-dir", tmp_path, "--replicates", 2]
    status, printed, _ = hdlm(*words, "--output", tmp_path / "out")
    assert status == 1
    assert "lambada.txt" in next(line for line in printed.splitlines() if "failed" in line)
    assert {path.parent.name for path in (tmp_path / "out").rglob("results.json")} == {"ptb", "text8"}
    assert protocol.read_result(tmp_path / "out" / "ptb" / "results.json")["data"]["detokenizer"] == "ptb"
    status, printed, complaint = hdlm(model, "--data", "lambada", "--data-dir", tmp_path)
    assert (status, printed) == (2, "")
    assert "lambada" in complaint


def test_eval_likelihood_rejects_bad_options_in_one_line(hdlm, model: Path, data: Path) -> None:
    for words, said in [
        (["--length", 9], "up to 8 tokens"),
        (["--hyperschedule", "autoregressive", "--width", 2], "has no effect"),
        (["--bound", "hybrid", "--estimator", "count"], "hybrid bound has"),
        (["--part", "middle"], "part of a data set"),
    ]:
        status, _, complaint = hdlm(model, "--data", data if "--part" not in words else "ptb", *words)
        assert status == 2
        assert complaint.count("\n") == 1
        assert said in complaint


def test_windows_do_not_cross_document_boundaries() -> None:
    tokens, sizes = torch.arange(23), [9, 4, 1, 9]
    stacks = windows(tokens, 4, None, sizes)
    assert [tuple(stack.tokens.shape) for stack in stacks] == [(5, 4), (3, 1)]
    starts = [0, 9, 13, 14]
    for stack in stacks:
        for row in stack.tokens.tolist():
            assert sum(row[0] >= start for start in starts) == sum(row[-1] >= start for start in starts)
    assert torch.equal(torch.cat([stack.tokens.flatten() for stack in stacks]).sort().values, tokens)
    overlapping = windows(tokens, 4, 3, sizes)
    assert sum((stack.tokens.shape[1] - stack.given) * len(stack.tokens) for stack in overlapping) == 23
    with pytest.raises(ValueError, match=r"3 documents of 22 tokens"):
        windows(tokens, 4, None, [9, 4, 9])


def test_likelihood_within_documents_is_sum_of_single_documents(checkpoint: Checkpoint) -> None:
    text = tokenize_documents(checkpoint.tokenizer, SENTENCES)
    plan = autoregressive(LENGTH)
    apart = estimate_likelihood(
        checkpoint.denoiser, WindowedText(text.tokens, plan.length, documents=text.lengths), Regime(plan)
    )
    alone = [
        estimate_likelihood(checkpoint.denoiser, one, Regime(plan)).nats
        for one in text.tokens.split(list(text.lengths))
    ]
    assert apart.nats == pytest.approx(sum(alone), rel=1e-6)
    assert apart.within_documents
    assert apart.nats != pytest.approx(
        estimate_likelihood(checkpoint.denoiser, text.tokens, Regime(plan)).nats, rel=1e-6
    )


@pytest.mark.parametrize("limit", [5, 12, 20, 10_000])
def test_tokenize_documents_limit_keeps_the_beginning(checkpoint: Checkpoint, limit: int) -> None:
    tokenizer = checkpoint.tokenizer
    text, whole = (
        tokenize_documents(tokenizer, iter(SENTENCES), limit),
        tokenize_documents(tokenizer, SENTENCES),
    )
    assert len(text.tokens) <= max(limit, 2)
    assert sum(text.lengths) == len(text.tokens)
    assert text.num_bytes == sum(len(document) + 1 for document in text.documents)
    for taken, document in zip(text.documents, SENTENCES, strict=False):
        assert document.startswith(taken)
    if limit == 10_000:
        assert torch.equal(text.tokens, whole.tokens)


def test_find_text_selects_part_and_detokenizer(tmp_path: Path) -> None:
    (tmp_path / "ptb-train.txt").write_text("he did n't")
    found = find_text("ptb:train", "test", tmp_path)
    assert (found.name, found.part, found.detokenizer) == ("ptb", "train", "ptb")
    assert next(iter(found.corpus.documents())) == "he didn't"
    raw = find_text("ptb", "train", tmp_path, detokenize=False)
    assert raw.detokenizer is None
    assert next(iter(raw.corpus.documents())) == "he did n't"


def test_batch_size_halves_until_work_fits_in_memory() -> None:
    tried = []

    def work(size: int) -> int:
        tried.append(size)
        if size > 3:
            raise (
                torch.OutOfMemoryError("there is no memory")
                if size > 10
                else RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
            )
        return size

    batch = BatchSize(16)
    assert (batch.fit(work), tried) == (2, [16, 8, 4, 2])
    assert batch.fit(work) == 2
    with pytest.raises(RuntimeError, match="a fault"):
        batch.fit(lambda size: (_ for _ in ()).throw(RuntimeError("a fault")))
    with pytest.raises(ValueError, match=r"single window.*--length"):
        BatchSize(2).fit(lambda size: work(16))
    assert BatchSize.automatic(10**9, torch.device("cpu")).size == 1


def test_plan_of_selects_default_hyperschedule(checkpoint: Checkpoint) -> None:
    assert plan_of(checkpoint) == Block(LENGTH, 4, 2)
    assert plan_of(checkpoint, 3) == Block(3, 3, 2)
    assert plan_of(checkpoint, hyperschedule="slide", width=2) == Slide(LENGTH, 2, 2)
    assert plan_of(dataclasses.replace(checkpoint, hyperschedules=())) == flat(LENGTH, LENGTH)
    published = dataclasses.replace(checkpoint, hyperschedules=(PublishedWave(LENGTH, 4, 2),))
    assert plan_of(published) == Wave(LENGTH, 4, 2)


def test_protocol_differences_and_result_round_trip(checkpoint: Checkpoint, tmp_path: Path) -> None:
    result = {"settings": {"eta": 0.1}, "num_samples": 3}
    one = protocol.describe_protocol(
        checkpoint, "a name", kind="generation", result=result, seed=1, wall_seconds=2.0
    )
    other = protocol.describe_protocol(
        checkpoint, "b", kind="generation", result=result | {"metrics": {}}, seed=1
    )
    assert protocol.differences(one, other) == {}
    wrong = protocol.describe_protocol(
        checkpoint, "b", kind="generation", result=result | {"num_samples": 4}, seed=1
    )
    assert protocol.differences(one, wrong) == {"result.num_samples": (3, 4)}
    protocol.write_result(tmp_path / "one.json", one)
    assert protocol.read_result(tmp_path / "one.json") == one
    with pytest.raises(ValueError, match="JSON compliant"):
        protocol.write_result(tmp_path / "two.json", one | {"wall_seconds": math.inf})
    with pytest.raises(ValueError, match="not a result of"):
        protocol.fingerprint({"kind": "cake"})
    moved = dataclasses.replace(
        checkpoint,
        denoiser=tiny_denoiser(Uniform(checkpoint.vocabulary.num_words), seed=1).float(),
    )
    assert protocol.weights_sha256(moved.network) != one["weights_sha256"]


def test_interval_equals_student_t_interval() -> None:
    stats = pytest.importorskip("scipy.stats")
    estimates = torch.randn(40, generator=torch.Generator().manual_seed(0)).double().numpy()
    means, reach = interval(estimates)
    assert math.isnan(reach[0])
    for count in (2, 3, 4, 5, 10, 40):
        first = estimates[:count]
        exact = stats.t.ppf(0.975, count - 1) * first.std(ddof=1) / math.sqrt(count)
        assert means[count - 1] == pytest.approx(first.mean())
        assert reach[count - 1] == pytest.approx(exact, rel=1e-9)


def test_likelihood_report_states_interval_of_result(tmp_path: Path, model: Path, data: Path, hdlm) -> None:
    documents = json.loads(hdlm(model, "--data", data, "--replicates", 3, "--device", "cpu", "--json")[1])
    document = documents[str(data)]
    result = LikelihoodResult.from_dict(document["result"])
    low, high = (side / result.num_tokens / math.log(2) for side in result.interval())
    write_likelihood(tmp_path, "here", document)
    assert f"95% interval | {low:,.5f} to {high:,.5f} |" in (tmp_path / "report.md").read_text("utf-8")


def test_likelihood_table_reports_failure() -> None:
    table = likelihood_table({"here": {"failed": "the dog ate it"}})
    assert "the dog ate it" in table


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_processes_share_covers_every_item_once(count: int) -> None:
    parts = [Processes(3, rank).share(count) for rank in range(3)]
    assert [number for first, size in parts for number in range(first, first + size)] == list(range(count))


@pytest.mark.slow
def test_eval_likelihood_with_two_processes_equals_one(hdlm, model: Path, data: Path, tmp_path: Path) -> None:
    words = [model, "--data", data, "--replicates", 5, "--device", "cpu", "--json"]
    alone = json.loads(hdlm(*words)[1])[str(data)]["result"]["estimates"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "hdlm",
        "eval",
        "likelihood",
        *map(str, words),
        "--output",
        tmp_path / "o",
    ]
    both = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        printed = [one.communicate(timeout=200)[0] for one in both]
    finally:
        for one in both:
            one.kill()
    assert [one.returncode for one in both] == [0, 0]
    assert printed[1] == ""
    assert json.loads(printed[0])[str(data)]["result"]["estimates"] == pytest.approx(alone, rel=1e-6)
    assert protocol.read_result(tmp_path / "o" / "results.json")["result"]["estimates"] == pytest.approx(
        alone
    )
