"""Loads weights from a folder, a file, a published run or the hub, in any format that has a card.

    source -> config and names of tensors -> the one card that recognises them -> blueprint -> weights -> Checkpoint

Nothing is guessed: a format is recognised by the content of its files, every tensor must be where the format has it,
and what is missing is an error. Code that comes with weights is never run. A network is filled file by file and tensor
by tensor, so loading needs hardly more memory than the weights themselves.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch

from hdlm.checkpoint import FORMAT, Checkpoint, WeightsName, assemble, load_checkpoint
from hdlm.checkpoint.weights import fill, skeleton, stored_names
from hdlm.denoiser import Denoiser
from hdlm.hub.card import AbstractCard, Blueprint, Evidence
from hdlm.hub.cards import CARDS
from hdlm.hub.configs import read_config
from hdlm.hub.lightning import hub_config
from hdlm.hub.mask_token import mask_token
from hdlm.hub.source import RAW, SINGLE, Hub, Source, beside, find, no_config
from hdlm.hub.stored import StoredWeights, open_weights
from hdlm.network import read_network_config
from hdlm.vocabulary import Vocabulary

if TYPE_CHECKING:
    from hdlm.data import Tokenizer

__all__ = ["LocatedCheckpoint", "inspect", "load"]

OWN = "hdlm"
"""Name of hdlm's own format, which needs no card."""

_TOKENIZER_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
"""A tokenizer that a config may name: a name of the hub, never a local path."""

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@final
@dataclass(frozen=True)
class LocatedCheckpoint:
    """A model at a source, without its weights.

    Attributes:
        evidence: Its config, and names and shapes of its tensors.
        card: Name of its format; `"hdlm"` for hdlm's own.
        blueprint: Description of the model; `blueprint.unknown` has the keys of its config that hdlm does not know.
        files: The files of the model.
        step: Training steps done, if the file records them.
    """

    evidence: Evidence
    card: str
    blueprint: Blueprint
    files: tuple[Path, ...]
    step: int | None = None


def load(
    source: str | Path,
    *,
    weights: WeightsName = "averaged",
    config: str | Path | None = None,
    tokenizer: str | Path | None = None,
    num_words: int | None = None,
    mask_id: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    offline: bool = False,
) -> Checkpoint:
    """Load a model strictly, in evaluation mode.

    Args:
        source: A checkpoint folder of hdlm, a folder as on the hub, a run folder of the published trainer, a file of
            weights (`.safetensors`, `.bin`, `.pth`, `.pt`, `.ckpt`), the name of a model that ships with hdlm, or a
            hub id `org/name`. Local files come first.
        weights: The moving average of training, or the raw weights of its last step. A file that holds one set of
            weights and does not record which it is counts as `"averaged"`.
        config: The config, or a folder with it, if it is not with the weights.
        tokenizer: A tokenizer file, folder or name in place of the one of the model.
        num_words: Number of words without the mask, if the config does not have it. Rows of the weights after the
            words and the mask are padding.
        mask_id: Row of the mask in the weights, if it is not the row after the words.
        device: Device of the model.
        dtype: Precision of the weights.
        revision: Branch, tag or commit of a hub repository.
        cache_dir: Folder for files of the hub.
        token: Access token for private repositories of the hub.
        offline: Whether to use only local files.

    Raises:
        ValueError: If something is missing, damaged, unsafe, contradictory or in an unknown format; the message names
            it. Missing weights are never initialised instead.
        OSError: If the hub cannot be reached, or a file cannot be read.
    """
    if dtype not in _FLOATS:
        raise ValueError(f"`dtype` must be one of {', '.join(map(str, _FLOATS))}; got {dtype}.")
    hub = Hub(revision, cache_dir, token, offline)
    files = find(source, hub, weights, None if config is None else Path(config))
    settings = {} if files.config is None else read_config(files.config)
    if _is_own(settings):
        _refuse_rows(files, num_words, mask_id)
        checkpoint, mask_row, spare_rows = _load_own(files, weights, device, dtype), None, False
        if tokenizer is None:
            return checkpoint
    else:
        stored = open_weights(*files.weights)
        settings = _settings(settings, stored, files, num_words, mask_id)
        card, blueprint = _recognise(settings, stored, files)
        checkpoint = _build(settings, stored, card, blueprint, weights, dtype)
        checkpoint.denoiser.to(device).eval()
        mask_row, spare_rows = blueprint.mask_row, blueprint.spare_rows
    words = checkpoint.vocabulary
    loaded: Tokenizer | None
    if tokenizer is not None:
        loaded = _find_tokenizer(tokenizer, words, mask_row, hub, spare_rows=spare_rows)
    else:
        loaded = _tokenizer(files, blueprint, hub)
    if loaded is None:
        return checkpoint
    if words.bos is None and words.eos is None:
        words = loaded.vocabulary
    return dataclasses.replace(checkpoint, tokenizer_json=loaded.to_json(), vocabulary=words)


def inspect(
    source: str | Path,
    *,
    weights: WeightsName = "averaged",
    config: str | Path | None = None,
    num_words: int | None = None,
    mask_id: int | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    offline: bool = False,
) -> LocatedCheckpoint:
    """Describe a model without loading its weights; the arguments are those of `load`.

    Raises:
        ValueError: If something is missing, damaged, unsafe, contradictory or in an unknown format.
        OSError: If the hub cannot be reached, or a file cannot be read.
    """
    hub = Hub(revision, cache_dir, token, offline)
    files = find(source, hub, weights, None if config is None else Path(config))
    settings = {} if files.config is None else read_config(files.config)
    stored = open_weights(*files.weights)
    if _is_own(settings):
        _refuse_rows(files, num_words, mask_id)
        evidence = Evidence(settings, stored.tensors.shapes, files.origin)
        return LocatedCheckpoint(evidence, OWN, _own_blueprint(settings, stored, files), files.files)
    settings = _settings(settings, stored, files, num_words, mask_id)
    card, blueprint = _recognise(settings, stored, files)
    evidence = Evidence(settings, stored.tensors.shapes, files.origin)
    return LocatedCheckpoint(evidence, card.name, blueprint, files.files, stored.step)


def recognise(evidence: Evidence, cards: tuple[AbstractCard, ...] = CARDS) -> AbstractCard:
    """The one card that recognises a format.

    Raises:
        ValueError: If no card or several ones do; the message describes the files.
    """
    fitting = [card for card in cards if card.recognises(evidence)]
    if len(fitting) == 1:
        return fitting[0]
    keys = ", ".join(key[:40] for key in sorted(map(str, evidence.config))[:12]) or "none"
    names = ", ".join(name[:80] for name in sorted(evidence.shapes)[:4]) or "none"
    seen = (
        f"its config has model_type {evidence.config.get('model_type')!r} and the keys {keys}; its "
        f"{len(evidence.shapes)} tensors begin with {names}"
    )
    known = ", ".join(card.name for card in cards)
    if not fitting:
        raise ValueError(f"{evidence.origin} is in no format that hdlm reads ({known}): {seen}.")
    raise ValueError(f"{evidence.origin} could be any of {', '.join(card.name for card in fitting)}: {seen}.")


def _recognise(
    settings: Mapping[str, Any], stored: StoredWeights, files: Source
) -> tuple[AbstractCard, Blueprint]:
    evidence = Evidence(settings, stored.tensors.shapes, files.origin, mask_token(files.tokenizer))
    card = recognise(evidence)
    blueprint = card.blueprint(evidence)
    words, rows = blueprint.vocabulary.num_words, blueprint.network.vocab_size
    mask = blueprint.mask_row if blueprint.mask_row is not None else words if rows > words else None
    for key, value in (("num_words", words), ("mask_id", mask)):
        if settings.get(key) not in (None, value):
            raise ValueError(
                f"{files.origin}: `{key}` {settings[key]!r} is not that of its format ({card.name}), where it is "
                f"{'none: the model has no mask' if value is None else value}."
            )
    return card, blueprint


def _settings(
    settings: Mapping[str, Any],
    stored: StoredWeights,
    files: Source,
    num_words: int | None,
    mask_id: int | None,
) -> dict[str, Any]:
    """The config of a model, from its file or from its weights, with what the user gives about its rows."""
    if files.config is None:
        table = stored.tensors.shapes.get("vocab_embed.embedding")
        inside = None if stored.settings is None or not table else hub_config(stored.settings, table[0])
        if inside is None:
            raise no_config(files.origin, beside(files.weights[0]), inside=stored.settings is not None)
        settings = inside
    given = {"num_words": num_words, "mask_id": mask_id}
    return {**settings, **{key: value for key, value in given.items() if value is not None}}


def _refuse_rows(files: Source, num_words: int | None, mask_id: int | None) -> None:
    if num_words is not None or mask_id is not None:
        raise ValueError(
            f"{files.origin} is a checkpoint of hdlm, which records its words and its mask: leave `num_words` and "
            "`mask_id` out."
        )


def _build(
    settings: Mapping[str, Any],
    stored: StoredWeights,
    card: AbstractCard,
    blueprint: Blueprint,
    weights: WeightsName,
    dtype: torch.dtype,
) -> Checkpoint:
    network = skeleton(blueprint.network, stored.tensors)
    tensors, kind = stored.choose(weights, stored_names(blueprint.tensors))
    fill(
        network,
        tensors,
        blueprint.tensors,
        ignored=blueprint.ignored,
        mask_row=blueprint.mask_row,
        padding=blueprint.padding,
        adds_mask=blueprint.adds_mask,
        dtype=dtype,
    )
    origin: dict[str, Any] = {"format": card.name, "weights": kind, "config": dict(settings)}
    if stored.step is not None:
        origin["step"] = stored.step
    if blueprint.mask_row is not None:
        origin["mask_row"] = blueprint.mask_row
    if blueprint.unknown:
        origin["unknown"] = list(blueprint.unknown)
    return Checkpoint(
        Denoiser(network, blueprint.process, blueprint.parameterization),
        blueprint.vocabulary,
        blueprint.noise_schedule,
        blueprint.hyperschedules,
        training=origin,
        context=blueprint.context,
        active=blueprint.active,
    )


def _is_own(settings: Mapping[str, Any]) -> bool:
    return "format" in settings and ("network" in settings or "process" in settings)


def _load_own(
    files: Source, weights: WeightsName, device: torch.device | str, dtype: torch.dtype
) -> Checkpoint:
    """A checkpoint of hdlm, from its folder or one of the two files in it."""
    named = {SINGLE: weights, RAW: "raw"}.get(files.weights[0].name)
    folder = files.weights[0].parent
    if named is None or files.config != folder / "config.json":
        raise ValueError(
            f"{files.origin} has the config of a checkpoint of hdlm, which is a folder with config.json and "
            f"{SINGLE}; got {', '.join(map(str, files.files))}."
        )
    return load_checkpoint(folder, device, weights="raw" if named == "raw" else "averaged", dtype=dtype)


def _own_blueprint(settings: Mapping[str, Any], stored: StoredWeights, files: Source) -> Blueprint:
    if settings.get("format") != FORMAT:
        raise ValueError(f"{files.config} must have `format` {FORMAT}; got {settings.get('format')!r}.")
    try:
        network = skeleton(read_network_config(settings["network"]), stored.tensors)
        outline = assemble({"training": {}, **settings}, network)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{files.config}: {error}") from error
    return Blueprint(
        network=network.config,
        vocabulary=outline.vocabulary,
        process=outline.denoiser.process,
        parameterization=outline.denoiser.parameterization,
        noise_schedule=outline.noise_schedule,
        hyperschedules=outline.hyperschedules,
        tensors={name: name for name, _ in network.named_parameters()},
        context=outline.context,
        active=outline.active,
    )


def _tokenizer(files: Source, blueprint: Blueprint, hub: Hub) -> Tokenizer | None:
    """The tokenizer in the folder, else the one that the config names, if it is cached or the hub was just reached."""
    vocabulary, mask_row = blueprint.vocabulary, blueprint.mask_row
    if files.tokenizer is not None:
        return _find_tokenizer(files.tokenizer, vocabulary, mask_row, hub, spare_rows=blueprint.spare_rows)
    if blueprint.tokenizer is None or not _TOKENIZER_NAME.fullmatch(blueprint.tokenizer):
        return None
    here_only = dataclasses.replace(hub, offline=hub.offline or not files.fetched, revision=None)
    try:
        return _find_tokenizer(blueprint.tokenizer, vocabulary, mask_row, here_only)
    except (ValueError, OSError):
        return None


def _find_tokenizer(
    source: str | Path, vocabulary: Vocabulary, mask_row: int | None, hub: Hub, *, spare_rows: bool = False
) -> Tokenizer:
    """The tokenizer in a file, a folder or on the hub, with exactly the words of the network."""
    try:
        from hdlm.data import find_tokenizer
    except ImportError as error:
        raise OSError(
            f"to read a tokenizer, install its packages: pip install 'hdlm[train]' ({error})."
        ) from error
    tokenizer = find_tokenizer(source, cache_dir=hub.cache_dir, token=hub.token, offline=hub.offline)
    try:
        return tokenizer.fitted(vocabulary, mask_row, spare_rows=spare_rows)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
