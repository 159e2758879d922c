"""The options of other tools mean the settings of this package, and contradictions are errors."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest

import hdlm
from hdlm.generation.other_names import OTHER_NAMES, OtherNames, with_other_names
from hdlm.generation.settings import Settings
from hdlm.sampling import ByConfidence, ByFactor, ByThreshold, InParts
from hdlm.strict_config import OptionError

COUNTS = ("new_tokens", "block", "sub_block", "steps")
"""Settings that count tokens or steps."""


@pytest.fixture(scope="module")
def model() -> Any:
    return hdlm.load("kjv-epsilon-4m")


def read(model: Any, own: Settings | None = None, **other: Any) -> Settings:
    return with_other_names(own or Settings(), OtherNames(**other), model)


def test_table_has_every_name() -> None:
    assert {field.name for field in fields(OtherNames)} == OTHER_NAMES.keys()
    assert not OTHER_NAMES.keys() & {field.name for field in fields(Settings)}


@pytest.mark.parametrize(
    ("other", "own"),
    [
        ({"gen_length": 32}, {"new_tokens": 32}),
        ({"max_new_tokens": 32, "gen_length": 32}, {"new_tokens": 32}),
        ({"block_length": 8}, {"width": 8}),
        ({"small_block_size": 4}, {"sub_block": 4}),
        ({"max_denoising_steps": 12}, {"steps": 12}),
        ({"remasking": "low_confidence"}, {"algorithm": "low_confidence"}),
        ({"remasking": "random"}, {"algorithm": "original"}),
        ({"alg": "entropy"}, {"algorithm": "neg_entropy"}),
        ({"threshold": 0.9}, {"algorithm": "threshold", "eta": 0.1}),
        ({"threshold": 0.9, "remasking": "low_confidence"}, {"algorithm": "threshold", "eta": 0.1}),
        (
            {"confidence_threshold": 0.8, "remasking_strategy": "low_confidence_dynamic"},
            {"algorithm": "low_confidence_dynamic", "eta": 0.2},
        ),
        ({"factor": 1.0}, {"algorithm": "factor", "eta": 1.0}),
        ({"entropy_bound": 0.1}, {"algorithm": "entropy_renoising", "eta": 0.1}),
        ({"cfg_scale": 1.5}, {"guidance": 1.5}),
        ({"cfg": 2.5}, {"guidance": 1.5}),
        ({"cfg": 1.0}, {"guidance": 0.0}),
    ],
)
def test_other_names_mean_settings(model: Any, other: dict[str, Any], own: dict[str, Any]) -> None:
    assert read(model, **other) == Settings(**own)


def test_block_of_flat_canvas_is_a_sub_block(model: Any) -> None:
    settings = read(model, Settings(hyperschedule="flat"), block_length=8)
    assert (settings.sub_block, settings.width) == (8, None)


@pytest.mark.parametrize(
    ("own", "other", "message"),
    [
        (Settings(new_tokens=8), {"gen_length": 9}, "`gen_length` and `new_tokens` are two names"),
        (
            Settings(),
            {"gen_length": 9, "max_new_tokens": 8},
            "`max_new_tokens` and `gen_length` are two names",
        ),
        (Settings(steps=4), {"denoising_steps": 8}, "`denoising_steps` and `steps` are two names"),
        (Settings(), {"threshold": 0.9, "remasking": "random"}, "`threshold` has no effect on the algorithm"),
        (Settings(), {"cfg": 2.0, "cfg_scale": 2.0}, "`cfg` and `cfg_scale` are two names"),
    ],
)
def test_contradictions_are_errors(model: Any, own: Settings, other: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(model, own, **other)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *((name, 0, "at least 1") for name, field in OTHER_NAMES.items() if field in COUNTS),
        *(
            (name, value, "in [0, 1]")
            for name, field in OTHER_NAMES.items()
            if field == "eta"
            for value in (-1.0, 2.0)
        ),
        ("cfg_scale", -1.0, "at least 0"),
    ],
)
def test_value_out_of_range_is_refused_by_the_given_name(
    model: Any, name: str, value: float, expected: str
) -> None:
    with pytest.raises(OptionError, match=re.escape(f"`{name}` must be {expected}; got {value}")):
        read(model, **{name: value})


def test_settings_build_published_steps(model: Any) -> None:
    flat, blocks = hdlm.flat(64, 8), hdlm.Block(64, 32, 1)
    llada = read(
        model, Settings(hyperschedule="flat", temperature=0.0), block_length=32, remasking="low_confidence"
    )
    assert llada.step(model, flat) == ByConfidence(quota="even", greedy=True, block=32)
    assert llada.transforms() == ()
    fast = read(model, Settings(temperature=0.0), small_block_size=8, threshold=0.75)
    assert fast.step(model, blocks) == InParts(ByThreshold(0.75, greedy=True), 8, 32)
    assert read(model, factor=0.5).step(model, flat) == ByFactor(0.5)


def test_generate_understands_other_names(model: Any) -> None:
    (passage,) = model.generate("And the LORD", gen_length=16, threshold=0.5, steps=1, seed=0, progress=False)
    assert len(passage.tokens) == passage.given + 16
    with pytest.raises(ValueError, match="give one of them"):
        model.generate("And the LORD", gen_length=16, length=32, progress=False)
