"""The options of other tools: one table of their names, and what they mean in the settings of this package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, final

from hdlm.checkpoint import Checkpoint
from hdlm.generation.settings import Settings
from hdlm.strict_config import read_table, require

__all__ = ["OTHER_NAMES", "OtherNames", "settings_of", "with_other_names"]

_ALGORITHMS: Mapping[str, str] = {
    "random": "original",
    "origin": "original",
    "entropy": "neg_entropy",
    "margin_confidence": "topk_margin",
    "confidence_threshold": "threshold",
}
"""Algorithms that have another name here than in other tools."""
_BY_THRESHOLD: Mapping[str, str] = {
    "low_confidence": "threshold",
    "maskgit_plus": "threshold",
    "threshold": "threshold",
    "low_confidence_dynamic": "low_confidence_dynamic",
    "joint_threshold": "joint_threshold",
}
"""The algorithm that takes the place of another one if a threshold is given."""


@final
@dataclass(frozen=True)
class OtherNames:
    """Options by the names that other tools give them; each stands for a field of `Settings`.

    Attributes:
        gen_length: Number of tokens after the prompt (LLaDA, SDAR): `new_tokens`.
        max_new_tokens: Number of tokens after the prompt (Dream, dllm, transformers): `new_tokens`.
        block_length: Positions of a block (LLaDA, SDAR): `sub_block` along a flat hyperschedule, else `width`.
        block_size: Positions of a block (Fast-dLLM, dllm), like `block_length`.
        small_block_size: Positions of a sub-block (Fast-dLLM v2): `sub_block`.
        denoising_steps: Number of steps of a block (SDAR): `steps`.
        diffusion_steps: Number of steps (DiffuLLaMA): `steps`.
        max_denoising_steps: Number of steps of a canvas (DiffusionGemma): `steps`.
        remasking: Rule for the order of words (LLaDA), such as low_confidence or random: `algorithm`.
        remasking_strategy: Rule for the order of words (SDAR), like `remasking`: `algorithm`.
        alg: Rule for the order of words (Dream): maskgit_plus, topk_margin, entropy or origin: `algorithm`.
        threshold: Least probability of a word that is written at once (Fast-dLLM): 1 - `eta` of such an algorithm.
        confidence_threshold: Least probability of a word that is written at once (SDAR), like `threshold`.
        factor: Factor of the confidence (Fast-dLLM): `eta` of the algorithm factor.
        entropy_bound: Bound of the accepted entropies in nats (DiffusionGemma): `eta` of entropy_renoising and
            diffusion_gemma.
        cfg_scale: Scale of guidance (LLaDA, dllm): `guidance`.
        cfg: Scale of guidance (evaluation of Dream), where 1 and less is off: `guidance` + 1.
    """

    gen_length: int | None = None
    max_new_tokens: int | None = None
    block_length: int | None = None
    block_size: int | None = None
    small_block_size: int | None = None
    denoising_steps: int | None = None
    diffusion_steps: int | None = None
    max_denoising_steps: int | None = None
    remasking: str | None = None
    remasking_strategy: str | None = None
    alg: str | None = None
    threshold: float | None = None
    confidence_threshold: float | None = None
    factor: float | None = None
    entropy_bound: float | None = None
    cfg_scale: float | None = None
    cfg: float | None = None


OTHER_NAMES: Mapping[str, str] = {
    "gen_length": "new_tokens",
    "max_new_tokens": "new_tokens",
    "block_length": "block",
    "block_size": "block",
    "small_block_size": "sub_block",
    "denoising_steps": "steps",
    "diffusion_steps": "steps",
    "max_denoising_steps": "steps",
    "remasking": "algorithm",
    "remasking_strategy": "algorithm",
    "alg": "algorithm",
    "threshold": "eta",
    "confidence_threshold": "eta",
    "factor": "eta",
    "entropy_bound": "eta",
    "cfg_scale": "guidance",
    "cfg": "guidance",
}
"""The field of `Settings` for each name; `block` is `sub_block` or `width`, which depends on the hyperschedule."""


def settings_of(checkpoint: Checkpoint, given: Mapping[str, Any]) -> Settings:
    """The settings from a table whose keys are fields of `Settings` or names of other tools.

    Args:
        checkpoint: The model, whose hyperschedule determines what a block is.
        given: Values by name.

    Raises:
        ValueError: If a name is unknown, a value is out of range, or two names of one field have different values.
    """
    other = {name: value for name, value in given.items() if name in OTHER_NAMES}
    own = read_table(Settings, {name: value for name, value in given.items() if name not in other})
    names = read_table(OtherNames, other)
    return with_other_names(own, names, checkpoint, by_default="algorithm" not in given)


def with_other_names(
    settings: Settings, other: OtherNames, checkpoint: Checkpoint, *, by_default: bool | None = None
) -> Settings:
    """The settings, with the options that were given by other names.

    Args:
        settings: The settings by their names here.
        other: The options by other names.
        checkpoint: The model, whose hyperschedule determines what a block is.
        by_default: Whether the algorithm of the settings is not the choice of the user; None if it is the usual one.

    Raises:
        OptionError: If a value is out of range; the error has the name that was given.
        ValueError: If two names of one field have different values, or an option does not fit the algorithm.
    """
    given = {
        field.name: value for field in fields(other) if (value := getattr(other, field.name)) is not None
    }
    flat = settings.hyperschedule == "flat" or (
        settings.hyperschedule is None and all(plan.is_flat for plan in checkpoint.hyperschedules[:1])
    )
    default, values, names = Settings(), dict[str, Any](), dict[str, str]()
    for name, value in given.items():
        _check_range(name, value)
        field, meant = OTHER_NAMES[name], _meaning(name, value)
        field = ("sub_block" if flat else "width") if field == "block" else field
        own = getattr(settings, field)
        if own != getattr(default, field) and field not in values:
            values[field], names[field] = own, field
        if field in values and values[field] != meant:
            raise ValueError(
                f"`{name}` and `{names[field]}` are two names of one setting, `{field}`, and contradict each other: "
                f"{name}={value!r} means {field}={meant!r}, and {names[field]} means {field}={values[field]!r}. "
                "Leave one of them out."
            )
        values[field], names[field] = meant, name
    algorithm = values.get("algorithm", settings.algorithm)
    usual = "algorithm" not in values and (
        algorithm == default.algorithm if by_default is None else by_default
    )
    return replace(settings, **values | {"algorithm": _algorithm(algorithm, names.get("eta"), usual=usual)})


def _check_range(name: str, value: Any) -> None:
    """Refuse a number outside the range of its setting. Of `cfg`, every value up to 1 means that guidance is off.

    Raises:
        OptionError: If the number is outside.
    """
    setting = OTHER_NAMES[name]
    if setting == "eta":
        require(0 <= value <= 1, name, "in [0, 1]", value)
    elif name == "cfg_scale":
        require(value >= 0, name, "at least 0", value)
    elif setting not in ("algorithm", "guidance"):
        require(value >= 1, name, "at least 1", value)


def _meaning(name: str, value: Any) -> Any:
    """The value of the field of `Settings`."""
    if name in ("threshold", "confidence_threshold"):
        return round(1 - value, 12)
    if name == "cfg":
        return max(value - 1, 0.0)
    return _ALGORITHMS.get(value, value) if OTHER_NAMES[name] == "algorithm" else value


def _algorithm(algorithm: str, by: str | None, *, usual: bool) -> str:
    """The algorithm, if the option `by` gives its strength.

    Raises:
        ValueError: If the option has no effect on the algorithm.
    """
    if by in ("threshold", "confidence_threshold"):
        known = _BY_THRESHOLD
    elif by in ("factor", "entropy_bound"):
        names = ("factor",) if by == "factor" else ("entropy_renoising", "diffusion_gemma", "entropy")
        known = dict(zip(names, names, strict=True))
        if by == "factor":
            known |= {"low_confidence": "factor"}
    else:
        return algorithm
    if usual:
        return next(iter(known.values()))
    if algorithm not in known:
        raise ValueError(
            f"`{by}` has no effect on the algorithm {algorithm!r}; it has an effect on {', '.join(known)}. "
            f"Leave `{by}` out, or choose one of these algorithms."
        )
    return known[algorithm]
