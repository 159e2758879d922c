"""DDiTConfig: the JSON round trip, and errors that name the option and the value."""

from __future__ import annotations

import dataclasses
import json

import pytest

from hdlm.network import DDiTConfig

SIZES = {"vocab_size": 11, "hidden_size": 24, "num_blocks": 2, "num_heads": 3}


def test_network_config_json_round_trip():
    config = DDiTConfig(**SIZES, cond_dim=8, dropout=0.1, timestep_embedding=True, condition_output=True)
    assert DDiTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (SIZES | {"hiden_size": 4}, "unknown option `hiden_size`; did you mean `hidden_size`"),
        ({"vocab_size": 11, "hidden_size": 24}, "`num_blocks` must be given"),
        ({}, "`vocab_size` must be given"),
        (SIZES | {"mlp_ratio": 4.0}, "`mlp_ratio` must be int; got 4.0"),
        (SIZES | {"vocab_size": 0}, "`vocab_size` must be a positive integer; got 0"),
        (SIZES | {"num_blocks": True}, "`num_blocks` must be int; got True"),
        (SIZES | {"dropout": 1.0}, r"`dropout` must lie in \[0, 1\); got 1.0"),
        (
            SIZES | {"hidden_size": 27},
            r"`hidden_size` must be an even multiple of `num_heads` \(3\).*; got 27",
        ),
        (SIZES | {"num_heads": 5}, r"even multiple of `num_heads` \(5\).*; got 24"),
        (
            SIZES | {"condition_output": True},
            "`timestep_embedding` must be true with `condition_blocks` or `condition_output`",
        ),
    ],
)
def test_network_config_rejects_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        DDiTConfig.from_dict(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (SIZES | {"mlp_ratio": 4.0}, "`mlp_ratio` must be a positive integer; got 4.0"),
        (SIZES | {"num_heads": "4"}, "`num_heads` must be a positive integer; got '4'"),
        (SIZES | {"condition_blocks": 1}, "`condition_blocks` must be true or false; got 1"),
        (SIZES | {"dropout": None}, r"`dropout` must lie in \[0, 1\); got None"),
    ],
)
def test_network_config_rejects_wrong_types_without_type_checks(fields, message, monkeypatch):
    monkeypatch.setattr(DDiTConfig, "__init__", unchecked_init)
    with pytest.raises(ValueError, match=message):
        DDiTConfig(**fields)


def unchecked_init(self, **fields):
    """The generated `__init__` without the type checks that the tests install."""
    for field in dataclasses.fields(DDiTConfig):
        object.__setattr__(self, field.name, fields.get(field.name, field.default))
    self.__post_init__()
