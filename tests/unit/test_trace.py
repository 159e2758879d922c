"""Traces: what the network predicted at each change, without a further call, and the JSON document of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from typing import Any

import fastjsonschema
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import hdlm
from hdlm.generation import TraceDocument, record
from hdlm.generation.recording import LevelCurves, change_columns, frame_of
from hdlm.hyperschedule import Block, PublishedWave, autoregressive, flat
from hdlm.parameterization import Mean
from hdlm.process import Absorbing, EpsilonHybrid
from hdlm.regime import Regime
from hdlm.sampling import (
    Ancestral,
    Change,
    Execution,
    FirstHitting,
    Frame,
    Reading,
    Reads,
    Remask,
    Step,
    Temperature,
    Trace,
    algorithm,
    sample,
)
from tests.laws.test_every_way_of_writing import SCHEDULES
from tests.tiny import FixedAnswer, tiny_denoiser

WORDS, LENGTH = 5, 8
MODEL = "kjv-epsilon-4m"
LOGITS = torch.tensor([2.0, 0.5, 0.0, -1.0, 0.3, 0.0], dtype=torch.float64)
SCHEMA = json.loads((files("hdlm.generation") / "trace.schema.json").read_text(encoding="utf-8"))


FLAT = flat(LENGTH, 4)


def traced(step: Step, schedule: Any = FLAT, **options: Any) -> list[Change]:
    denoiser = FixedAnswer(Absorbing(WORDS), Mean(), LOGITS.expand(4 * LENGTH, -1))
    trace = Trace(
        WORDS, **{name: options.pop(name) for name in ("alternatives", "transformed") if name in options}
    )
    sample(denoiser, Regime(schedule), step, watch=trace, **options)
    return trace.changes


# --- probabilities ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("transformed", [False, True])
def test_probabilities_are_those_of_the_model_or_after_transforms(transformed: bool) -> None:
    changes = traced(Ancestral(), transforms=(Temperature(0.5),), transformed=transformed, alternatives=3)
    p = (LOGITS[:WORDS] / (0.5 if transformed else 1.0)).softmax(0)
    entropy = float(torch.special.entr(p).sum())
    assert len(changes) == LENGTH
    for change in changes:
        assert (change.old, change.p_old, change.reason) == (WORDS, None, "unmasked")
        assert change.p_new == pytest.approx(float(p[change.new]))
        assert change.entropy == pytest.approx(entropy)
        assert change.alternatives is not None
        assert [token for token, _ in change.alternatives] == [0, 1, 4]
        assert [q for _, q in change.alternatives] == pytest.approx([float(p[t]) for t in (0, 1, 4)])


def test_noise_and_costs_are_those_of_the_step() -> None:
    changes = traced(Ancestral(), autoregressive(LENGTH))
    assert [change.step for change in changes] == list(range(LENGTH))
    assert [change.noise for change in changes] == [1.0] * LENGTH
    assert [change.evaluations for change in changes] == list(range(1, LENGTH + 1))
    assert [change.computed for change in changes] == [sum(range(1, n + 2)) for n in range(LENGTH)]
    shares = {change.step: change.noise for change in traced(Ancestral())}
    assert all(noise == 1 - step / 4 for step, noise in shares.items())


def test_a_word_that_is_masked_again_without_a_reading_has_no_probabilities() -> None:
    changes = traced(Remask(1.0), flat(LENGTH, 12), num_sequences=4)
    again = [change for change in changes if change.reason == "remasked"]
    assert again
    for change in again:
        assert (change.p_old, change.p_new, change.entropy, change.alternatives) == (None, None, None, None)
        assert change.noise is not None
    assert all(change.p_new is not None for change in changes if change.reason == "unmasked")


def test_a_word_that_is_masked_again_because_of_its_probability_keeps_it() -> None:
    process = Absorbing(WORDS)
    changes = traced(algorithm("remdm_confidence", process, 0.9), flat(LENGTH, 12), num_sequences=4)
    again = [change for change in changes if change.reason == "remasked"]
    assert again
    p = LOGITS[:WORDS].softmax(0)
    for change in again:
        if change.p_old is not None:  # otherwise the step began without words, and read nothing
            assert change.p_old == pytest.approx(float(p[change.old]))
            assert change.p_new is None
    assert any(change.p_old is not None for change in again)


def test_several_calls_in_one_step_give_each_word_its_own_reading() -> None:
    """First-hitting calls the network before each word, so its words have different distributions."""
    trace = Trace(WORDS)
    done = sample(tiny_denoiser(Absorbing(WORDS)), Regime(flat(LENGTH, 1)), FirstHitting(), watch=trace)
    assert {change.step for change in trace.changes} == {0}
    assert int(done.num_evaluations) > 1
    assert len({change.entropy for change in trace.changes}) == LENGTH


def test_alternatives_can_be_none_few_or_more_than_there_are_words() -> None:
    assert all(change.p_new is None for change in traced(Ancestral(), alternatives=None))
    assert all(change.alternatives == () for change in traced(Ancestral(), alternatives=0))
    assert all(len(change.alternatives or ()) == WORDS for change in traced(Ancestral(), alternatives=99))
    with pytest.raises(ValueError, match="at least 0, or None; got -1"):
        Trace(WORDS, alternatives=-1)


# --- costs -----------------------------------------------------------------------------------------------------------
class Operations(TorchDispatchMode):
    """Counts operators."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(watch: Callable[[Frame], None] | None) -> int:
    denoiser = tiny_denoiser(EpsilonHybrid(WORDS, 0.2))
    step = algorithm("acs", denoiser.process, 0.5)
    with Operations() as mode:
        sample(denoiser, Regime(Block(LENGTH, 4, 3)), step, num_sequences=2, watch=watch)
    return mode.count


def test_recording_costs_nothing_when_it_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a watcher no code of a trace runs; a watcher that records nothing causes no operator."""
    watched = operations(lambda frame: None)
    plain = operations(None)

    monkeypatch.setattr(Reads, "ask", property(lambda reads: reads._ask))
    assert operations(lambda frame: None) == watched

    def refuse(*_: object) -> None:
        raise AssertionError("a trace is off, but its code runs")

    monkeypatch.setattr(Reads, "__init__", refuse)
    monkeypatch.setattr(Reading, "beliefs", refuse)
    assert operations(None) == plain


@pytest.mark.parametrize("name", ["acs", "gibbs", "threshold", "remdm_confidence", "euler"])
def test_a_trace_changes_neither_tokens_nor_evaluations(name: str) -> None:
    process = EpsilonHybrid(WORDS, 0.2)
    denoiser, step = tiny_denoiser(process), algorithm(name, process, 0.5)
    runs = [
        sample(denoiser, Regime(Block(LENGTH, 4, 3)), step, num_sequences=3, seed=2, watch=watch)
        for watch in (None, Trace(WORDS))
    ]
    for field in ("tokens", "evaluations", "computed"):
        assert torch.equal(*(getattr(run, field) for run in runs)), field
    assert runs[0].num_evaluations == runs[1].num_evaluations


def test_costs_of_a_sequence_do_not_depend_on_the_batch() -> None:
    process = EpsilonHybrid(WORDS, 0.2)
    denoiser, step = tiny_denoiser(process), algorithm("acs", process, 0.5)

    def costs(**how: Any) -> list[tuple[int, ...]]:
        trace = Trace(WORDS)
        sample(denoiser, Regime(Block(LENGTH, 4, 3)), step, seed=2, watch=trace, **how)
        rows = [c for c in trace.changes if c.sequence == 2]
        return [(c.step, c.position, c.evaluations, c.computed) for c in rows]

    assert costs(num_sequences=4) == costs(execution=Execution(first_sequence=2))
    assert costs(num_sequences=4, execution=Execution(batch_size=3)) == costs(num_sequences=3)


def test_a_kept_frame_keeps_no_reading() -> None:
    frames: list[Frame] = []
    denoiser = tiny_denoiser(Absorbing(WORDS))
    sample(denoiser, Regime(flat(LENGTH, 4)), Ancestral(), watch=frames.append)
    reads = [frame.reads for frame in frames if isinstance(frame.reads, Reads)]
    everywhere = torch.ones(1, LENGTH, dtype=torch.bool)
    assert reads
    assert all(not list(read.last(everywhere)) for read in reads)


# --- documents -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def model() -> hdlm.Checkpoint:
    return hdlm.load(MODEL, device="cpu")


@pytest.fixture(scope="module")
def document(model: hdlm.Checkpoint) -> TraceDocument:
    settings = hdlm.Settings("acs", eta=0.8, length=16, steps=4, temperature=0.8)
    return record(model, "And it came", settings, num=2, seed=3, alternatives=2)[1]


def test_record_writes_the_passages_of_write(model: hdlm.Checkpoint, document: TraceDocument) -> None:
    settings = hdlm.Settings("acs", eta=0.8, length=16, steps=4, temperature=0.8)
    passages = hdlm.write(model, "And it came", settings, num=2, seed=3)
    assert [one.text for one in document.sequences] == [passage.text for passage in passages]
    for one, passage in zip(document.sequences, passages, strict=True):
        tokens = list(one.start)
        for change in document.of_sequence(one.index):
            assert tokens[change.position] == change.old
            tokens[change.position] = change.new
        assert tuple(tokens) == passage.tokens
        assert one.given == tuple(range(passage.given))
        assert (one.evaluations, one.computed) == (passage.evaluations, passage.computed)
    assert {change.reason for change in document.changes} == {"unmasked", "corrected"}


def test_document_fits_its_schema_and_survives_a_file(document: TraceDocument, tmp_path: Any) -> None:
    path = tmp_path / "new folder" / "trace.json"
    document.save(path)
    plain = json.loads(path.read_text(encoding="utf-8"))
    fastjsonschema.compile(SCHEMA)(plain)
    assert json.loads(TraceDocument.load(path).to_json()) == plain
    read, kept = TraceDocument.load(path), document
    assert replace(read, changes=()) == replace(kept, changes=())
    for ours, theirs in zip(read.changes, kept.changes, strict=True):
        assert ours.p_new == pytest.approx(theirs.p_new, rel=1e-3)
        rounded = {"p_new": None, "p_old": None, "entropy": None, "noise": None, "alternatives": ()}
        assert replace(ours, **rounded) == replace(theirs, **rounded)


@pytest.mark.parametrize("fault", ["probability", "reason", "missing", "unknown"])
def test_schema_refuses_other_documents(document: TraceDocument, fault: str) -> None:
    plain = json.loads(document.to_json())
    if fault == "probability":
        plain["changes"]["p_new"][0] = 1.5
    if fault == "reason":
        plain["changes"]["reason"][0] = "noise"
    if fault == "missing":
        del plain["levels"]
    if fault == "unknown":
        plain["other"] = 1
    with pytest.raises(fastjsonschema.JsonSchemaException):
        fastjsonschema.compile(SCHEMA)(plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="other"), "is not a trace; `hdlm sample --trace FILE`"),
        (lambda d: d.update(version=2), "of version 2; this hdlm reads version 1"),
        (lambda d: d.pop("levels"), "damaged trace: KeyError 'levels'"),
        (lambda d: d["changes"]["p_new"].pop(), "damaged trace: ValueError"),
        (lambda d: d["pieces"].clear(), "the text of token .* is missing"),
        (lambda d: d["changes"]["position"].__setitem__(0, 99), "lies outside the run"),
        (lambda d: d["changes"]["sequence"].__setitem__(0, 99), "damaged trace: KeyError 99"),
        (lambda d: d["levels"]["curve"].__setitem__(0, 7), "a curve that is not there"),
        (lambda d: d["levels"]["opens"].pop(), "differ in length"),
    ],
)
def test_damaged_documents_are_refused_with_a_reason(
    document: TraceDocument, change: Any, message: str
) -> None:
    plain = json.loads(document.to_json())
    change(plain)
    with pytest.raises(ValueError, match=message):
        TraceDocument.from_dict(plain)


def test_a_file_that_is_not_json_is_refused(tmp_path: Any) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="because it is not JSON"):
        TraceDocument.load(tmp_path / "a.json")


@pytest.mark.parametrize("schedule", [*SCHEDULES, PublishedWave(9, 3, 4), flat(1, 1)], ids=repr)
def test_level_curves_are_the_levels(schedule: Any) -> None:
    curves = LevelCurves.of(schedule)
    levels = schedule.levels(torch.arange(schedule.num_steps + 1)).tolist()
    assert [
        [curves.level(position, step) for position in range(schedule.length)]
        for step in range(schedule.num_steps + 1)
    ] == levels
    worthless = schedule.regions(torch.arange(schedule.num_steps)).worthless.tolist()
    assert worthless == [[step < opens for opens in curves.opens] for step in range(schedule.num_steps)]


def test_a_trace_of_1024_tokens_and_128_steps_is_small() -> None:
    """Remasking gives several changes for each token; ids get two more digits."""
    words, length = 1000, 1024
    raw = torch.randn(1, words + 1, generator=torch.Generator().manual_seed(0)).expand(length, -1)
    trace = Trace(words)
    denoiser = FixedAnswer(Absorbing(words), Mean(), raw)
    schedule = flat(length, 128)
    sample(denoiser, Regime(schedule), Remask(0.05), watch=trace)
    assert len(trace.changes) > 2 * length
    text = json.dumps({"changes": change_columns(trace.changes), "levels": LevelCurves.of(schedule).__dict__})
    ids = len(trace.changes) * (2 + 5)  # of the old and the new token and the alternatives
    assert len(text) + 2 * ids + 20 * words < 2_000_000  # each token's text has less than 20 bytes


def test_frames_of_a_run_together_are_its_trace(model: hdlm.Checkpoint) -> None:
    trace, frames = Trace(model.vocabulary.mask_id), []

    def read(token: int) -> str | None:
        return None if token == trace.mask_id else model.tokenizer.piece(token)

    def watch(frame: Frame) -> None:
        changes = trace.record(frame)
        cost = {"evaluations": frame.evaluations[0], "computed": frame.computed[0]}
        frames.append(frame_of(changes, read, step=frame.step, **cost))

    hdlm.write(model, "And", hdlm.Settings("acs", length=12, steps=3), watch=watch)
    joined: dict[str, list[Any]] = {name: [] for name in change_columns([])}
    for frame in frames:
        for name, column in frame["changes"].items():
            joined[name] += column
    assert joined == change_columns(trace.changes)
    assert all(piece != "" for frame in frames for piece in frame["pieces"].values())
