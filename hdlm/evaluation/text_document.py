"""The document of a measurement on a text: the text is read, measured, described, and the result is written."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hdlm.atomic import check_folder, keeping
from hdlm.checkpoint import Checkpoint
from hdlm.evaluation.records import protocol
from hdlm.evaluation.records.protocol import ResultKind
from hdlm.evaluation.text import Text, find_text, tokenize_documents

__all__ = ["TextSelection", "document_of_text"]


@runtime_checkable
class TextSelection(Protocol):
    """The options that select a text: the part of a named data set, its folder, and the seed of the measurement."""

    @property
    def part(self) -> str:
        """Part of a named data set."""

    @property
    def data_dir(self) -> Path | None:
        """Folder of data sets; None for that of the environment."""

    @property
    def seed(self) -> int:
        """Seed of all random numbers."""


def document_of_text(
    checkpoint: Checkpoint,
    text: object,
    options: TextSelection,
    measure: Callable[[Text], Mapping[str, Any]],
    *,
    kind: ResultKind,
    model: str,
    weights: Any,
    output: Path | None,
    files: tuple[str, ...],
    write: Callable[[Path, dict[str, Any]], object],
) -> dict[str, Any]:
    """Measure a text, and return the document; see `hdlm.evaluation.records.protocol`.

    Args:
        checkpoint: The checkpoint of the model.
        text: The text, as for `hdlm.evaluation.text.find_text`.
        options: Options of the measurement.
        measure: Called with the tokenised text; returns the result.
        kind: Kind of the document.
        model: Name of the model in the document.
        weights: Which weights were loaded, `"averaged"` or `"raw"`, if that is known.
        output: Folder for the document, a report and a picture; nothing is written by default.
        files: Names of the files in the folder; the first is the document.
        write: Writes the other files, from the folder and the document.

    Raises:
        ValueError: If the text cannot be used, or the folder cannot be written to.
    """
    begin = time.perf_counter()
    if output is not None:
        check_folder(output, *files)
    source = find_text(text, options.part, options.data_dir)
    read = tokenize_documents(checkpoint.tokenizer, source.corpus.documents())
    document = protocol.describe_protocol(
        checkpoint,
        model,
        kind=kind,
        result=measure(read),
        seed=options.seed,
        weights=weights,
        data=source.describe(read),
        wall_seconds=time.perf_counter() - begin,
    )
    if output is not None:
        with keeping(lambda: json.dumps(document)):
            protocol.write_result(output / files[0], document)
            write(output, document)
    return document
