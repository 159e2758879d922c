"""Published words and pieces: both directions of each mapping, and the published defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from hdlm.hyperschedule import Block, PublishedSlide, PublishedWave, Slide, Wave, flat
from hdlm.noise_schedule import Cosine, Geometric, LogLinear
from hdlm.parameterization import LogScore, Mean, Shifted
from hdlm.process import GIDD, Absorbing, GammaHybrid, Uniform
from hdlm.published import score_samplers
from hdlm.published.options import AnnealingOptions, GraphOptions, NoiseOptions
from hdlm.published_names import (
    DEFAULTS,
    AlignmentName,
    AnnealingName,
    Family,
    GraphName,
    NoiseName,
    alignment_of,
    annealing_of,
    dotted,
    family_defaults,
    gamma_of,
    graph_of,
    hyperschedule,
    noise_of,
    noise_process,
    noise_schedule,
    parameterization,
)

WORDS, LENGTH = 11, 16
PROCESSES = {"QGamma": GammaHybrid(WORDS, 0.3), "absorb": Absorbing(WORDS), "uniform": Uniform(WORDS)}
SCHEDULES = {"loglinear": LogLinear(5e-3), "geometric": Geometric(1e-3, 9.0)}
WINDOWS = {
    "block": Block(LENGTH, 4, 3),
    "simple": PublishedSlide(LENGTH, 4, 3),
    "hybrid": PublishedWave(LENGTH, 4, 3),
    "none": flat(LENGTH, 3),
}
OUTPUTS = {"aligned": Mean(), "shifted": Shifted(Mean())}


def test_examples_cover_every_published_word() -> None:
    tables = (
        (PROCESSES, GraphName),
        (SCHEDULES, NoiseName),
        (WINDOWS, AnnealingName),
        (OUTPUTS, AlignmentName),
    )
    for examples, words in tables:
        assert tuple(examples) == get_args(words)


@pytest.mark.parametrize("word", PROCESSES)
def test_graph_words_in_both_directions(word: str) -> None:
    piece = PROCESSES[word]
    assert noise_process(word, WORDS, 0.3) == piece
    assert graph_of(piece) == word
    config = {"tokenizer": {"tokens": WORDS}, "graph": {"type": word, "gamma": 0.3}}
    assert score_samplers._process_of(config) == piece


@pytest.mark.parametrize("word", PROCESSES)
def test_gamma_hybrids_of_training_have_the_law_of_each_graph(word: str) -> None:
    u = torch.linspace(0, 1, 33, dtype=torch.float64)
    assert GraphOptions(type=word, gamma=0.3).rate == gamma_of(word, 0.3)  # type: ignore[arg-type]
    trained = GammaHybrid(WORDS, gamma_of(word, 0.3)).weights(u)
    published = PROCESSES[word].weights(u)
    for share in ("clean", "uniform", "mask"):
        torch.testing.assert_close(getattr(trained, share), getattr(published, share), rtol=0, atol=1e-15)


@pytest.mark.parametrize("word", SCHEDULES)
def test_noise_words_in_both_directions(word: str) -> None:
    piece, options = SCHEDULES[word], {"type": word, "sigma_min": 1e-3, "sigma_max": 9.0}
    assert noise_schedule(word, 1e-3, 9.0) == piece
    assert noise_of(piece) == (options if word == "geometric" else {"type": word})
    assert score_samplers._noise_of({"noise": options}) == piece
    assert NoiseOptions(word, 1e-3, 9.0).schedule["type"] == type(piece).__name__  # type: ignore[arg-type]


@pytest.mark.parametrize("levels", [3, 4])
@pytest.mark.parametrize("word", WINDOWS)
def test_annealing_words_in_both_directions(word: str, levels: int) -> None:
    """`simple` with `tau` equal to `width` is a `Slide` in every reader."""
    piece = hyperschedule(word, LENGTH, 4, levels)
    width = LENGTH if word == "none" else 4
    assert type(piece) is (Slide if (word, levels) == ("simple", 4) else type(WINDOWS[word]))
    assert (piece.length, piece.num_levels) == (LENGTH, levels)
    assert annealing_of(piece, LENGTH) == {"type": word, "width": width, "tau": levels}
    config = {"annealing": {"type": word, "width": 4, "tau": 2, "eval_tau": levels}}
    assert score_samplers._plan_of(config, LENGTH) == piece
    trained = AnnealingOptions(type=word, width=4, tau=2).hyperschedule(levels)  # type: ignore[arg-type]
    assert trained["type"] == type(piece).__name__


@pytest.mark.parametrize("width", [2, 5, LENGTH])
def test_slide_is_the_published_simple_at_each_step(width: int) -> None:
    ours, published = hyperschedule("simple", LENGTH, width), PublishedSlide(LENGTH, width, width)
    assert ours == Slide(LENGTH, width, width)
    assert ours.num_steps == published.num_steps
    assert torch.equal(ours.settles, published.settles)
    steps = torch.arange(ours.num_steps + 3)
    assert torch.equal(ours.levels(steps), published.levels(steps))
    assert annealing_of(published, LENGTH) == annealing_of(ours, LENGTH)


def test_omitted_tau_is_the_width_of_the_window() -> None:
    assert hyperschedule("block", LENGTH, 4) == Block(LENGTH, 4, 4)
    assert hyperschedule("none", LENGTH, 4) == flat(LENGTH, LENGTH)
    assert score_samplers._plan_of({"annealing": {"type": "none", "width": 4}}, LENGTH) == flat(
        LENGTH, LENGTH
    )


@pytest.mark.parametrize("word", OUTPUTS)
def test_alignment_words_in_both_directions(word: str) -> None:
    assert parameterization(word, Mean()) == OUTPUTS[word]
    assert alignment_of(OUTPUTS[word]) == (word, Mean())


def test_piece_without_published_word_gives_none() -> None:
    assert graph_of(GIDD(WORDS, 0.1)) is None
    assert noise_of(Cosine()) is None
    assert noise_of(LogLinear(1e-3)) is None
    for piece in (Wave(LENGTH, 4, 3), Slide(LENGTH, 4, 3), Block(LENGTH - 4, 4, 3)):
        assert annealing_of(piece, LENGTH) is None
    assert alignment_of(LogScore()) == ("aligned", LogScore())


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: noise_process("web", WORDS), "graph.type"),
        (lambda: noise_schedule("pink"), "noise.type"),
        (lambda: hyperschedule("spiral", LENGTH), "annealing.type"),
        (lambda: parameterization("twisted", Mean()), "type"),
    ],
)
def test_unknown_published_word_names_the_known_words(make: Any, option: str) -> None:
    with pytest.raises(ValueError, match=rf"`{option}` must be one of .*; got"):
        make()


@pytest.mark.parametrize("option", ["graph.gamma", "noise.sigma_min", "noise.sigma_max"])
def test_missing_gamma_or_sigma_is_refused(option: str) -> None:
    table, _, key = option.partition(".")
    config: dict[str, Any] = {
        "tokenizer": {"tokens": WORDS},
        "graph": {"type": "QGamma", "gamma": 0.3},
        "noise": {"type": "geometric", "sigma_min": 1e-3, "sigma_max": 9.0},
    }
    del config[table][key]
    with pytest.raises(ValueError, match=f"lacks.*`{option}`"):
        (score_samplers._process_of if table == "graph" else score_samplers._noise_of)(config)


OF_ONE_MODEL = frozenset(
    {"tokenizer.tokens", "tokenizer.model", "training.batch_size", "graph.gamma"}
    | {f"annealing.{option}" for option in ("type", "width", "tau", "eval_tau")}
    | {
        f"model.{option}"
        for option in ("hidden_size", "cond_dim", "length", "n_blocks", "n_heads", "dropout")
    }
    | {"model.transformer_sigma_conditioning", "model.use_timestep_embedding"}
    | {"model.scale_by_sigma", "model.hybrid_sigma_embedding"}
)
"""Options for which the golden models have their own values."""


@pytest.mark.parametrize("family", get_args(Family))
@pytest.mark.parametrize("suffix", ["", "_vocab50257"])
def test_family_defaults_equal_published_configs(shared: Path, family: Family, suffix: str) -> None:
    folder = shared / "golden" / f"{family.partition('_')[0]}{suffix}"
    published = dict(dotted(json.loads((folder / "config.json").read_text())))
    ours = dict(dotted(family_defaults(family)))
    for option in published.keys() - OF_ONE_MODEL:
        assert ours[option] == published[option], option
    assert ours.keys() <= published.keys()


def test_training_options_have_published_defaults() -> None:
    assert (GraphOptions().gamma, NoiseOptions().sigma_max) == (0.01, 10.0)
    for options, table in ((GraphOptions(), "graph"), (NoiseOptions(), "noise")):
        for name, value in vars(options).items():
            assert DEFAULTS[f"{table}.{name}"] == value
    assert DEFAULTS["annealing.sampling_eps"] == AnnealingOptions("block", 4, 4).sampling_eps


def test_defaults_hold_only_options_on_which_families_agree() -> None:
    assert "optim.beta2" not in DEFAULTS
    assert DEFAULTS["training.epsilon"] == 0.01
