"""`hdlm eval generation` with the shipped model: metrics, failures, output files and resuming."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from hdlm.checkpoint import load_checkpoint
from hdlm.cli import main
from hdlm.cli._models import shipped
from hdlm.evaluation import estimate_likelihood
from hdlm.evaluation.generation.corrections import fates, fill_in, per_step, revisions
from hdlm.evaluation.generation.judge import CheckpointJudge, TransformersJudge
from hdlm.evaluation.generation.judges import judges_of
from hdlm.evaluation.generation.mauve import FEWEST, mauve
from hdlm.evaluation.generation.metrics import Estimate
from hdlm.evaluation.generation.samples import Sample, draw_samples, num_evaluations, tokens_per_second
from hdlm.evaluation.generation.scoring import PERPLEXITY, pieces, score, score_or_failure, text_of
from hdlm.evaluation.generation.self_bleu import self_bleu
from hdlm.generation import Settings, write
from hdlm.hyperschedule import autoregressive
from hdlm.package_data import pretrained
from hdlm.regime import Regime
from hdlm.sampling import Change
from tests import gpt2

MODEL = "kjv-epsilon-4m"
SHORT = Settings(algorithm="acs", eta=0.3, length=12)
WORDS = [MODEL, "--length", "12", "--algorithm", "acs", "--eta", "0.3", "--device", "cpu"]


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint(pretrained() / MODEL)


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return checkpoint.tokenizer


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50257, n_positions=128, n_embd=8, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    for name, content in gpt2.hub_files().items():
        if name != "config.json":
            (folder / name).write_bytes(content)
    return str(folder)


@pytest.fixture(scope="module")
def real_text(full_set, tmp_path_factory):
    text = (full_set / "data" / "wikitext2_raw_test.txt").read_text(encoding="utf-8")[:30000]
    path = tmp_path_factory.mktemp("text") / "wikitext.txt"
    path.write_text(text, encoding="utf-8")
    return str(path)


# --- self-BLEU; the numbers are those of sacrebleu 2.6 (tokenize="none", smooth_method="exp"), jackknife included


@pytest.mark.parametrize(
    ("samples", "value", "error"),
    [
        (
            [
                [2, 2, 0, 3, 1, 0, 1, 0, 2, 3, 1, 3],
                [0, 1, 0, 1, 3, 2, 1, 3, 1, 0, 1, 3],
                [1, 1, 0, 0, 1, 1, 1, 1, 2, 2, 1, 1],
                [1, 1, 3, 2, 0, 2, 3, 1, 1, 2, 0, 2],
            ],
            0.403349832887,
            0.120124185030,
        ),
        (
            [
                [2, 6, 4, 4, 0, 4, 5, 5, 2],
                [0, 2, 2],
                [6, 2, 3, 5, 2, 1, 3, 3, 5, 1, 0, 2, 0, 5],
                [2, 6, 3, 0, 4, 6, 3, 2, 3, 4, 6],
                [0, 3, 0, 5, 1, 4],
            ],
            0.187897034063,
            0.047705210398,
        ),
    ],
    ids=["alike", "unequal"],
)
def test_self_bleu_is_that_of_sacrebleu(samples, value, error) -> None:
    found = self_bleu(samples)
    assert found.value == pytest.approx(value, abs=1e-9)
    assert found.error == pytest.approx(error, abs=1e-9)


def test_self_bleu_of_copies_is_one_and_of_disjoint_samples_zero() -> None:
    assert self_bleu([list(range(9))] * 3) == Estimate(1.0, 0.0)
    assert self_bleu([list(range(9)), list(range(9, 18))]) == Estimate(0.0, None)
    for samples in ([[1, 2]], [[1, 2], []]):
        with pytest.raises(ValueError, match="at least two"):
            self_bleu(samples)


# --- judges


def test_checkpoint_judge_equals_exact_likelihood(checkpoint, tokenizer) -> None:
    texts = ["And God said, Let there be light: and there was light.", "In the beginning", "", "In the end"]
    found = CheckpointJudge(checkpoint, tokenizer, "ours", batch_size=2).judge(texts)
    assert (found[2].nats, found[2].num_tokens) == (0.0, 0)
    for text, judgement in zip(texts, found, strict=True):
        if not text:
            continue
        ids = torch.tensor([tokenizer.vocabulary.bos, *tokenizer.encode(text)])
        first, whole = (
            estimate_likelihood(checkpoint.denoiser, part, Regime(autoregressive(len(part)))).nats
            for part in (ids[:1], ids)
        )
        assert judgement.num_tokens == len(ids) - 1
        assert judgement.nats == pytest.approx(whole - first, rel=1e-5)
    (long,) = CheckpointJudge(checkpoint, tokenizer, "ours").judge([f"{texts[0]} " * 12])
    assert long.num_tokens > checkpoint.length
    assert math.isfinite(long.nats)


def test_checkpoint_judge_prefers_text_to_shuffled_words(checkpoint, tokenizer) -> None:
    ours = CheckpointJudge(checkpoint, tokenizer, "ours")
    scripture = "And the LORD said unto Moses, Go unto Pharaoh, and say unto him"
    mixed = "Pharaoh unto him the And unto, said Moses LORD Go, say unto and"
    written, shuffled = ours.judge([scripture, mixed])
    assert written.nats / written.num_tokens < shuffled.nats / shuffled.num_tokens - 1


def test_judge_features_are_last_hidden_state_for_any_batch_size(judge) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = ["In the beginning", "x", "And God said, Let there be light"]
    one, all_at_once = (TransformersJudge(judge, batch_size=size).features(texts) for size in (1, 3))
    assert torch.allclose(one, all_at_once, atol=1e-5)
    model, words = AutoModelForCausalLM.from_pretrained(judge).eval(), AutoTokenizer.from_pretrained(judge)
    ids = torch.tensor([[words.bos_token_id, *words(texts[0])["input_ids"]]])
    with torch.no_grad():
        assert torch.allclose(model.transformer(ids).last_hidden_state[0, -1], one[0], atol=1e-5)


def test_judges_of_selects_kind_of_judge_by_name(judge, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert MODEL in shipped()
    found = judges_of([MODEL, str(pretrained() / MODEL), judge, "nobody/nothing"], torch.device("cpu"))
    kinds = [type(one) for one in found.values()]
    assert kinds == [CheckpointJudge, CheckpointJudge, TransformersJudge, str]
    assert "cannot be loaded" in str(found["nobody/nothing"])


# --- MAUVE


def test_mauve_separates_similar_from_distant_features_with_error() -> None:
    pytest.importorskip("mauve")
    random = torch.Generator().manual_seed(0)
    p, q, far = (torch.randn(60, 8, generator=random) + shift for shift in (0.0, 0.0, 4.0))
    same, apart = mauve(p, q, seed=1), mauve(p, far, seed=1)
    assert same.value > 0.8 > 0.2 > apart.value
    assert same.error is not None
    assert same.error > 0
    assert mauve(p, q, seed=1) == same


def test_mauve_rejects_too_few_samples_or_references() -> None:
    with pytest.raises(ValueError, match=f"at least {FEWEST} samples"):
        mauve(torch.zeros(3, 2), torch.zeros(9, 2))
    with pytest.raises(ValueError, match="as many pieces of real text"):
        mauve(torch.zeros(FEWEST, 2), torch.zeros(FEWEST - 1, 2))


def test_missing_mauve_package_is_reported_as_failure(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mauve", None)
    found = score_or_failure(
        ("MAUVE",), lambda: {"MAUVE": mauve(torch.zeros(20, 2), torch.zeros(20, 2))}, judge="j"
    )
    assert found == {
        "MAUVE": {"failed": 'MAUVE needs the package mauve-text: pip install "hdlm[eval]"', "judge": "j"}
    }


# --- samples that are kept


@pytest.mark.slow
def test_draw_samples_resumes_file_and_equals_write(checkpoint, tmp_path) -> None:
    keep = tmp_path / "samples.jsonl"
    told: list[tuple[int, float]] = []
    first = draw_samples(checkpoint, SHORT, num=2, seed=3, batch_size=1, keep=keep)
    again = draw_samples(checkpoint, SHORT, num=4, seed=3, keep=keep, watch=lambda *now: told.append(now))
    assert {done for done, _ in told} == {2}
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert 0.5 < shares[0] < shares[-1] == 1
    assert again[:2] == first
    whole = write(checkpoint, "", SHORT, num=4, seed=3)
    assert [tuple(one.tokens) for one in again] == [one.tokens for one in whole]
    assert [one.text for one in again] == [one.text for one in whole]
    assert len(keep.read_text().splitlines()) == 5
    assert draw_samples(checkpoint, SHORT, num=3, seed=3, keep=keep) == again[:3]
    assert num_evaluations(again) > 0
    assert tokens_per_second(again) > 0
    with pytest.raises(ValueError, match=r"made with other settings \(settings, seed differ\)"):
        draw_samples(checkpoint, replace(SHORT, eta=0.1), num=1, seed=4, keep=keep)
    keep.write_text("no samples")
    with pytest.raises(ValueError, match="not a file of samples"):
        draw_samples(checkpoint, SHORT, num=1, keep=keep)
    with pytest.raises(ValueError, match=r"no \[MASK\]"):
        draw_samples(checkpoint, SHORT, prompt="And [MASK] said", num=1)


@pytest.mark.slow
def test_draw_samples_halves_batch_when_out_of_memory(checkpoint, monkeypatch) -> None:
    sizes: list[int] = []

    def write_at_most_two(*args, num, **options):
        sizes.append(num)
        if num > 2:
            raise torch.OutOfMemoryError("too many")
        return write(*args, num=num, **options)

    monkeypatch.setattr("hdlm.evaluation.generation.samples.write", write_at_most_two)
    found = draw_samples(checkpoint, SHORT, num=5)
    assert sizes == [5, 5, 4, 2, 2, 1]
    assert [tuple(one.tokens) for one in found] == [one.tokens for one in write(checkpoint, "", SHORT, num=5)]
    with pytest.raises(torch.OutOfMemoryError):
        draw_samples(checkpoint, SHORT, num=5, batch_size=3)


# --- what correction did


def _change(step: int, position: int, old: int, new: int) -> Change:
    mask = 9
    reason = "unmasked" if old == mask else "remasked" if new == mask else "corrected"
    return Change(step, 0, position, old, new, reason)


def test_fates_and_revisions_equal_worked_example() -> None:
    text, gaps = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[False, True, True, True]])
    changes = [
        _change(0, 1, 9, 5),  # wrong, then put right
        _change(0, 2, 9, 3),  # right, then spoilt
        _change(1, 1, 5, 2),
        _change(1, 3, 9, 4),
        _change(2, 2, 3, 6),
        _change(3, 2, 6, 7),
        _change(4, 3, 4, 9),  # taken back, and written again
        _change(5, 3, 9, 4),
    ]
    found = fates(changes, text, gaps, torch.tensor([[1, 2, 7, 4]]))
    values = {name: one.value for name, one in found.items()}
    assert values == pytest.approx(
        {"to the data": 1, "away from it": 1, "astray": 1, "remasked": 1, "gaps": 3}
        | {"right when first filled": 2 / 3, "right at the end": 2 / 3}
    )
    by_step = per_step([revisions(changes, 0), revisions(changes, 1)])
    assert by_step["corrected"].value == 1.5
    assert by_step["corrected by step"] == [0, 0.5, 0.5, 0.5]
    assert by_step["remasked by step"] == [0, 0, 0, 0, 0.5]


def test_fill_in_counts_corrections_of_gaps(checkpoint, tokenizer) -> None:
    ids = tokenizer.encode("And God said, Let there be light: and there was light. And God saw the light")[
        :16
    ]
    text = torch.tensor([[tokenizer.vocabulary.bos, *ids]] * 2)
    plain = fill_in(checkpoint, text, Settings(algorithm="original"), share=0.4, seed=1)
    assert plain["to the data"].value == plain["astray"].value == 0
    assert plain["right when first filled"].value == pytest.approx(plain["right at the end"].value)
    assert 0 < plain["gaps"].value < 16
    corrected = fill_in(checkpoint, text, Settings(algorithm="acs", eta=0.5), share=0.4, seed=1, batch_size=1)
    assert corrected["gaps"] == plain["gaps"]
    assert corrected["astray"].value + corrected["to the data"].value > 0
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        fill_in(checkpoint, text, Settings(), share=0.0)


# --- scores


def test_pieces_do_not_overlap() -> None:
    found = pieces(torch.arange(23), 4, 5, seed=2)
    assert sorted(found[:, 0].tolist()) == [0, 5, 10, 15]
    with pytest.raises(ValueError, match="4 pieces of 5; 5 are needed"):
        pieces(torch.arange(23), 5, 5)


def test_score_reports_each_judge_and_its_failure(checkpoint, tokenizer) -> None:
    ours = CheckpointJudge(checkpoint, tokenizer, "ours")
    rows = [
        tokenizer.encode("In the beginning God created"),
        tokenizer.encode("And the earth was without form"),
    ]
    found = score(rows, [text_of(row, tokenizer) for row in rows], {"gone": "not here", "ours": ours})
    assert found[PERPLEXITY] == {"failed": "not here", "judge": "gone"}
    assert found[f"{PERPLEXITY} (ours)"]["value"] > 1
    assert found[f"{PERPLEXITY} (ours), mean over samples"]["judge"] == "ours"
    assert found["entropy"]["error"] is not None


# --- the command


@pytest.mark.slow
def test_eval_generation_writes_all_results_and_reuses_samples(judge, real_text, tmp_path, capsys) -> None:
    pytest.importorskip("mauve")
    folder = tmp_path / "out"
    words = ["eval", "generation", *WORDS, "--num", "20", "--judge", judge, "--judge", MODEL, "--mauve"]
    words += ["--reference", real_text, "--controls", "repeat", "unigram", "shuffle", "data"]
    words += ["--infill", "0.5", "--eta-sweep", "0", "--output", str(folder), "--save-samples", "--json"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((folder / "results.json").read_text())
    assert (document["kind"], document["model"], document["seed"]) == ("generation", MODEL, 0)
    result = document["result"]
    assert (result["num_samples"], result["length"], result["draw_dtype"]) == (20, 12, "float64")
    assert result["num_evaluations"] > 0 < result["tokens_per_second"]
    metrics = result["metrics"]
    assert metrics[PERPLEXITY]["judge"] == judge
    assert all(one["error"] >= 0 and math.isfinite(one["value"]) for one in metrics.values())
    assert {"entropy", "distinct-2", "repetition-4", "self-BLEU", "MAUVE", f"{PERPLEXITY} ({MODEL})"} <= set(
        metrics
    )
    assert set(result["references"]) == {real_text}
    assert set(result["controls"]) == {"repeat", "unigram", "shuffle", "data"}
    assert result["controls"]["repeat"]["entropy"]["value"] == 0
    ours = f"{PERPLEXITY} ({MODEL})"
    assert metrics[ours]["value"] < result["controls"]["unigram"][ours]["value"]
    telemetry = result["telemetry"]
    assert telemetry["corrected"]["value"] > 0 == telemetry["eta_sweep"][0]["corrected"]["value"]
    assert telemetry["infilling"]["gaps"]["value"] > 0
    assert len(json.loads((folder / "samples.json").read_text())) == 20
    report = (folder / "report.md").read_text()
    assert "## Definitions" in report
    assert "Nothing failed." in report
    assert "± " in report
    assert (folder / "metrics.png").stat().st_size > 1000
    kept = (folder / "samples.jsonl").stat().st_mtime_ns
    assert main(words) == 0
    assert (folder / "samples.jsonl").stat().st_mtime_ns == kept
    assert json.loads(capsys.readouterr().out)["result"] == result


@pytest.mark.slow
def test_eval_generation_eta_sweep_corrects_more_and_keeps_files_apart(real_text, tmp_path, capsys) -> None:
    words = [
        "eval",
        "generation",
        *WORDS,
        "--num",
        "3",
        "--judge",
        "none",
        "--reference",
        real_text,
        "--json",
    ]
    words += ["--infill", "0.5", "--eta-sweep", "0", "1", "--output", str(tmp_path)]
    assert main(words) == 0
    telemetry = json.loads(capsys.readouterr().out)["result"]["telemetry"]
    none, most = telemetry["eta_sweep"]
    assert (none["eta"], most["eta"]) == (0, 1)
    assert 0 == none["corrected"]["value"] < telemetry["corrected"]["value"] < most["corrected"]["value"]
    assert none["infilling"]["gaps"] == most["infilling"]["gaps"]
    assert none["entropy"]["value"] > 0
    assert {file.name for file in tmp_path.glob("*.jsonl")} == {
        "samples.jsonl",
        "samples-eta-0.jsonl",
        "samples-eta-1.jsonl",
    }


def test_eval_generation_reports_failures_and_keeps_other_results(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    short = tmp_path / "short.txt"
    short.write_text("A few words.", encoding="utf-8")
    words = ["eval", "generation", *WORDS, "--num", "2", "--judge", "nobody/x", "--reference", str(short)]
    assert main([*words, "--controls", "unigram", "--mauve", "--output", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert "not measured: the judge 'nobody/x' cannot be loaded" in printed
    result = json.loads((tmp_path / "out" / "results.json").read_text())["result"]
    assert result["metrics"]["entropy"]["value"] > 0
    assert "failed" in result["metrics"]["MAUVE"]
    assert "2 are needed" in result["references"][str(short)]["entropy"]["failed"]
    assert "failed" in result["controls"]["unigram"]["entropy"]


def test_eval_generation_of_one_sample_has_no_errors(capsys) -> None:
    assert main(["eval", "generation", *WORDS, "--num", "1", "--judge", "none"]) == 0
    printed = capsys.readouterr().out
    assert "entropy" in printed
    assert "at least two" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mauve", "--judge", "x"], "mauve needs real text"),
        (["--controls", "repeat"], "controls needs real text"),
        (["--infill", "0.5"], "infill needs real text"),
        (["--mauve", "--reference", "x", "--judge", "none"], "mauve needs a judge"),
        (["--judge", "none", "--judge", "gpt2"], "--judge none means that there is no judge"),
        (["--save-samples"], "needs --output"),
        (["--algorithm", "original", "--eta-sweep", "0.1"], "eta has no effect on the sampler 'original'"),
        (["--eta-sweep", "0.1", "2"], "`eta` must lie in [0, 1]; got 2.0"),
        (["--infill", "2", "--reference", "x"], "a share in"),
    ],
)
def test_eval_generation_rejects_conflicting_options(options, message, capsys) -> None:
    assert main(["eval", "generation", MODEL, *options]) == 2
    assert message in capsys.readouterr().err


def test_a_batch_size_is_a_number_or_auto(capsys) -> None:
    with pytest.raises(SystemExit) as left:
        main(["eval", "generation", MODEL, "--batch-size", "none"])
    assert left.value.code == 2
    assert "--batch-size: must be a whole number" in capsys.readouterr().err


def test_eval_generation_reports_unavailable_default_judge(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert main(["eval", "generation", *WORDS, "--num", "1", "--json"]) == 1
    metrics = json.loads(capsys.readouterr().out)["result"]["metrics"]
    assert "gpt2-large" in metrics["generative perplexity"]["failed"]
    assert metrics["entropy"]["value"] > 0


def test_sample_json_round_trip() -> None:
    sample = Sample("a", [1, 2], 1, 7, 0.5, {"corrected": {3: 1}, "remasked": {}})
    from dataclasses import asdict

    assert Sample.from_dict(json.loads(json.dumps(asdict(sample)))) == sample
    assert sample.written == [2]
