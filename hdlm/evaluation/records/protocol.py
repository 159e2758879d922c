"""The document of a result: a number and everything that is needed to measure it again.

Its keys, all plain JSON:

    kind                 "likelihood", "generation", "calibration", "repair" or "harness"
    model                name of the model; `weights`: "averaged", "raw", or "only" where there is only one kind
    weights_sha256       hash of all tensors: name, type, shape and bytes, by name
    process              result of `describe`, also for `parameterization` and the hyperschedule of a result
    dtype, device, seed  settings of the computation
    versions             of hdlm, python, torch, numpy and tokenizers
    data                 name, part, sha256 of the documents' text, documents, bytes, words, detokenizer; or null
    tokenizer_sha256     hash of the text of its file
    result               `LikelihoodResult.to_dict()`, or the samples' settings and scores
    wall_seconds         time that it took, all sessions together

Two results have the same protocol if their `fingerprint`s are equal: these omit names, devices, durations and the
measured numbers.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from hdlm import __version__
from hdlm.atomic import replacing
from hdlm.checkpoint import Checkpoint, describe

__all__ = [
    "ResultKind",
    "describe_data",
    "describe_piece",
    "describe_protocol",
    "differences",
    "fingerprint",
    "read_result",
    "text_sha256",
    "versions",
    "weights_sha256",
    "with_descriptions",
    "write_result",
]

ResultKind = Literal["likelihood", "generation", "calibration", "repair", "harness"]

_MODEL = ("weights", "weights_sha256", "process", "parameterization", "dtype", "seed", "tokenizer_sha256")
_DATA = ("part", "sha256", "documents", "bytes", "detokenizer")
_LIKELIHOOD = (
    "bound",
    "estimator",
    "hyperschedule",
    "noise_schedule",
    "context",
    "active",
    "stride",
    "num_tokens",
    "num_windows",
    "within_documents",
)
_GENERATION = ("settings", "num_samples", "length", "draw_dtype")
_PIECES = frozenset({"process", "parameterization", "hyperschedule", "noise_schedule"})
_OWN: Mapping[str, tuple[str, ...]] = {
    "likelihood": _LIKELIHOOD,
    "generation": _GENERATION,
    "calibration": ("protocol", "hyperschedule"),
    "repair": ("protocol", "settings"),
}


def describe_protocol(
    checkpoint: Checkpoint,
    model: str,
    *,
    kind: ResultKind,
    result: Mapping[str, Any],
    seed: int,
    weights: Literal["averaged", "raw", "only"] = "only",
    data: Mapping[str, Any] | None = None,
    wall_seconds: float = 0.0,
) -> dict[str, Any]:
    """The document of a result.

    Args:
        checkpoint: The model that was measured.
        model: The user's name for the model.
        kind: Kind of the measurement.
        result: Result of the measurement.
        seed: Seed of all random numbers.
        weights: Name of the requested weights; the checkpoint's own record takes precedence.
        data: The result of `describe_data`.
        wall_seconds: Time that it took.
    """
    text = checkpoint.tokenizer_json
    parameter = next(checkpoint.network.parameters())
    return {
        "kind": kind,
        "model": model,
        "weights": checkpoint.training.get("weights", weights),
        "weights_sha256": weights_sha256(checkpoint.network),
        "process": describe_piece(checkpoint.denoiser.process),
        "parameterization": describe_piece(checkpoint.denoiser.parameterization),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": str(parameter.device),
        "seed": seed,
        "versions": versions(),
        "data": None if data is None else dict(data),
        "tokenizer_sha256": None if text is None else hashlib.sha256(text.encode()).hexdigest(),
        "result": dict(result),
        "wall_seconds": round(wall_seconds, 3),
    }


def describe_piece(piece: Any) -> dict[str, Any]:
    """A process, a hyperschedule or another component in the form that documents hold: `describe`, in plain JSON.

    For a component that is not a dataclass, only the name of its class is known.
    """
    if not dataclasses.is_dataclass(piece):
        return {"type": type(piece).__name__}
    described: dict[str, Any] = json.loads(json.dumps(describe(piece)))
    return described


def describe_data(
    name: str, part: str, documents: Sequence[str], detokenizer: str | None = None
) -> dict[str, Any]:
    """Describe a text as the model's tokenizer received it.

    Args:
        name: The user's name for the text.
        part: Part of the data set.
        documents: The text, after the detokenizer.
        detokenizer: Name of the detokenizer; None if the text was not changed.
    """
    return {
        "name": name,
        "part": part,
        "sha256": text_sha256(documents),
        "documents": len(documents),
        "bytes": sum(len(document.encode()) for document in documents),
        "words": sum(len(document.split()) for document in documents),
        "detokenizer": detokenizer,
    }


def text_sha256(documents: Sequence[str]) -> str:
    """Hash of documents and their boundaries."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(hashlib.sha256(document.encode()).digest())
    return digest.hexdigest()


def weights_sha256(network: nn.Module) -> str:
    """Hash of all tensors of a network: independent of the device, different if one bit differs."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        plain = value.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str | None]:
    """Versions of the packages that the numbers depend on; None for missing packages."""
    return {
        "hdlm": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "numpy", "tokenizers")},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def fingerprint(document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that identify a measurement, by dotted names.

    Raises:
        ValueError: If it is not a result document.
    """
    kind = str(document.get("kind"))
    if kind not in _OWN or not isinstance(document.get("result"), Mapping):
        raise ValueError(
            f"this is not a result of `hdlm eval`: its `kind` is {kind!r}, and it needs a `result`."
        )
    data = document.get("data") or {}
    return {
        "kind": kind,
        **{name: document.get(name) for name in _MODEL},
        "versions.hdlm": (document.get("versions") or {}).get("hdlm"),
        **{f"data.{name}": data.get(name) for name in _DATA},
        **{f"result.{name}": document["result"].get(name) for name in _OWN[kind]},
    }


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Where the fingerprints of two documents differ: the two values by name.

    Raises:
        ValueError: If one is not a result document.
    """
    a, b = fingerprint(one), fingerprint(other)
    return {name: (a.get(name), b.get(name)) for name in {**a, **b} if a.get(name) != b.get(name)}


def write_result(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document atomically.

    Raises:
        ValueError: If a number in it is not finite; the document should report a failure instead.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path) as aside:
        aside.write_text(text + "\n", encoding="utf-8")


def read_result(path: Path) -> dict[str, Any]:
    """Read a document.

    Raises:
        FileNotFoundError: If the file does not exist; the message names the commands that write results.
        ValueError: If the file is not a result document.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"there is no file {path}: give a result of `hdlm eval`, or the folder that holds its results.json."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} holds no result: it is a {type(document).__name__}, not a table.")
    upgraded: dict[str, Any] = with_descriptions(document)
    return upgraded


def with_descriptions(document: Any) -> Any:
    """A document with its components described; earlier versions wrote them as `Block(length=8, ...)`."""
    if isinstance(document, list):
        return [with_descriptions(item) for item in document]
    if not isinstance(document, Mapping):
        return document
    return {
        name: _described(value) if name in _PIECES and isinstance(value, str) else with_descriptions(value)
        for name, value in document.items()
    }


def _described(text: str) -> Any:
    """The description of a component that is written as a call of its class; any other text unchanged."""
    try:
        call = ast.parse(text, mode="eval").body
        return _description(call) if isinstance(call, ast.Call) else text
    except (SyntaxError, ValueError):
        return text


def _description(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        options = {option.arg: _description(option.value) for option in node.keywords if option.arg}
        return {"type": ast.unparse(node.func), **options}
    if isinstance(node, ast.Tuple | ast.List):
        return [_description(item) for item in node.elts]
    return ast.literal_eval(node)
