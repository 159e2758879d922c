"""The data sets that the literature measures on, by the names that the published commands give them.

A copy of your own comes first: `NAME/SPLIT.txt`, `NAME-SPLIT.txt`, `NAME.txt` or a folder `NAME/`, in the folder that
the environment variable `HDLM_DATA_DIR` names (`.jsonl` and `.gz` will do as well). Where there is none, the
`datasets` library fetches it from its hub.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, final, get_args

from hdlm.data.corpora.base import AbstractCorpus
from hdlm.data.corpora.text_files import JSONLines, TextFiles

__all__ = ["DATA_DIR", "NAMED", "HubDataset", "NamedDataset", "Part", "data_folder", "part_of"]

DATA_DIR = "HDLM_DATA_DIR"
"""Environment variable that says where copies of data sets lie."""
ENDINGS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")
CONVERTED = "refs/convert/parquet"
"""Where the hub keeps the data of a repository whose own loader is a program, which is never run."""

Part = Literal["train", "validation", "test"]


@final
@dataclass(frozen=True)
class HubDataset:
    """Where the hub has a data set.

    Attributes:
        repository: Its id.
        config: Which of its configurations, if it has any.
        column: Where the text of a row is.
        parts: What the parts that it has are called there; a slice will do.
        revision: Branch or commit.
    """

    repository: str
    config: str | None = None
    column: str = "text"
    parts: Mapping[Part, str] = field(
        default_factory=lambda: {"train": "train", "validation": "validation", "test": "test"}
    )
    revision: str = "main"


def _papers(of: str) -> HubDataset:
    return HubDataset("armanc/scientific_papers", of, "article", revision=CONVERTED)


NAMED: Mapping[str, HubDataset] = MappingProxyType(
    {
        "ptb": HubDataset("ptb-text-only/ptb_text_only", "penn_treebank", "sentence", revision=CONVERTED),
        "wikitext2": HubDataset("Salesforce/wikitext", "wikitext-2-raw-v1"),
        "wikitext103": HubDataset("Salesforce/wikitext", "wikitext-103-raw-v1"),
        "lambada": HubDataset("EleutherAI/lambada_openai", "default", parts={"test": "test"}),
        "lm1b": HubDataset(
            "billion-word-benchmark/lm1b", parts={"train": "train", "test": "test"}, revision=CONVERTED
        ),
        "ag_news": HubDataset("fancyzhx/ag_news", parts={"train": "train", "test": "test"}),
        "openwebtext-train": HubDataset(
            "Skylion007/openwebtext",
            parts=dict.fromkeys(get_args(Part), "train[:-100000]"),
            revision=CONVERTED,
        ),
        "openwebtext-valid": HubDataset(
            "Skylion007/openwebtext", parts={"validation": "train[-100000:]"}, revision=CONVERTED
        ),
        "scientific_papers_arxiv": _papers("arxiv"),
        "scientific_papers_pubmed": _papers("pubmed"),
        "text8": HubDataset("afmck/text8"),
    }
)
"""The names, and where the hub has each."""


def data_folder() -> Path | None:
    """The folder that `HDLM_DATA_DIR` names, if it is set."""
    name = os.environ.get(DATA_DIR)
    return Path(name) if name else None


def part_of(word: str) -> Part:
    """A part of a data set by its name.

    Raises:
        ValueError: If there is no such part.
    """
    parts: tuple[Part, ...] = get_args(Part)
    for part in parts:
        if part == word:
            return part
    raise ValueError(f"the part of a data set must be one of {', '.join(parts)}; got {word!r}.")


@final
@dataclass(frozen=True)
class NamedDataset(AbstractCorpus):
    """One part of a data set; a document is a row of the hub's, or a file or line of your copy.

    Attributes:
        name: One of `NAMED`.
        part: Which part; a data set that keeps only one aside, for validation or for test, gives that for both.
        folder: Where copies lie; None for none.
        cache: Where the `datasets` library keeps what it fetches; None for its own place.

    Raises:
        ValueError: If the name is unknown.
    """

    name: str
    part: Part = "test"
    folder: Path | None = field(default_factory=data_folder)
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.name not in NAMED:
            raise ValueError(f"there is no data set {self.name!r}; known: {', '.join(NAMED)}.")

    def documents(self) -> Iterator[str]:
        copy = self.local_copy()
        if copy is None:
            yield from self._from_hub()
            return
        lines = copy.name.removesuffix(".gz").endswith(".jsonl") or (
            copy.is_dir() and not any(copy.rglob("*.txt*"))
        )
        yield from (JSONLines if lines else TextFiles)((str(copy),)).documents()

    def local_copy(self) -> Path | None:
        """The file or folder that stands for this part, if there is one."""
        if self.folder is None:
            return None
        stems = (f"{self.name}/{self.part}", f"{self.name}-{self.part}", self.name)
        files = (self.folder / f"{stem}{ending}" for stem in stems for ending in ENDINGS)
        return next((path for path in (*files, self.folder / self.name) if path.exists()), None)

    def _from_hub(self) -> Iterator[str]:
        try:
            rows = self._rows()
        except ModuleNotFoundError as error:
            raise ValueError(self._absent("the package `datasets` is not installed")) from error
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(self._absent(f"the hub did not give it: {reason}")) from error
        for row in rows:
            if text := str(row[NAMED[self.name].column]).strip():
                yield text

    def _rows(self) -> Any:
        import datasets

        place = NAMED[self.name]
        return datasets.load_dataset(
            place.repository,
            place.config,
            split=self._hub_part(),
            revision=place.revision,
            cache_dir=None if self.cache is None else str(self.cache),
        )

    def _hub_part(self) -> str:
        parts = NAMED[self.name].parts
        kept = parts.get(self.part)
        if kept is None and self.part != "train":
            kept = parts.get("test") or parts.get("validation")
        if kept is None:
            raise ValueError(f"it has no part {self.part!r}, only {', '.join(parts)}.")
        return kept

    def _absent(self, reason: str) -> str:
        where = f"in {self.folder}" if self.folder else f"(set {DATA_DIR} to the folder that has it)"
        return (
            f"the data set {self.name!r} is not here: there is no {self.name}.txt, {self.name}.jsonl or {self.name}/ "
            f'{where}, and {reason}. Put a copy there, or fetch it with `pip install "hdlm[eval]"` where the hub '
            "can be reached."
        )
