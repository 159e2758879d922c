"""The data sets of the literature, by the names that the published commands use.

A local copy comes first: `NAME/PART.txt`, `NAME-PART.txt`, `NAME_PART.txt`, `NAME_raw_PART.txt`, `NAME.txt` or a folder
`NAME/`, in the folder that the environment variable `HDLM_DATA_DIR` names (also with `.jsonl` and `.gz`, and with
`valid` for `validation`). If there is none, the `datasets` library downloads the data set from the hub.

Every row is a document, also an empty one, as in the published commands: an end of text follows each. So the rows of
the hub, a copy of them as JSON lines, and a text file give equal documents. In text files of Penn Treebank, WikiText
and the One Billion Word benchmark a row is a line; in others it is the whole file.

The text is detokenised as in the literature; see `hdlm.data.detokenizers`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, final, get_args

from hdlm.data.corpora.base import AbstractCorpus
from hdlm.data.corpora.text_files import JSONLines, TextFiles
from hdlm.data.detokenizers import DETOKENIZERS, detokenizer_of, row_of_line, rows_are_lines
from hdlm.strict_config import one_line

__all__ = ["DATA_DIR", "NAMED", "HubDataset", "NamedDataset", "Part", "data_folder", "part_of"]

DATA_DIR = "HDLM_DATA_DIR"
"""Environment variable with the folder of local copies."""
ENDINGS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")
CONVERTED = "refs/convert/parquet"
"""Branch of the hub with converted data, for repositories whose own loader is a program, which is never run."""
_COMMIT = re.compile(r"@([0-9a-f]{40})/")
"""The commit in the address of a file that came from the hub, `hf://datasets/REPOSITORY@COMMIT/FILE`."""

Part = Literal["train", "validation", "test"]


@final
@dataclass(frozen=True)
class HubDataset:
    """The place of a data set on the hub.

    Attributes:
        repository: Id of the repository.
        config: Name of the configuration, if there are several.
        column: Column that holds the text of a row.
        parts: Names of its parts on the hub; slices are possible.
        revision: Commit, if one with the data is known; else a branch, whose commit `NamedDataset.revision` returns.
    """

    repository: str
    config: str | None = None
    column: str = "text"
    parts: Mapping[Part, str] = field(
        default_factory=lambda: {"train": "train", "validation": "validation", "test": "test"}
    )
    revision: str = "main"


def _papers(config: str) -> HubDataset:
    return HubDataset("armanc/scientific_papers", config, "article", revision=CONVERTED)


_WIKITEXT = "b08601e04326c79dfdd32d625aee71d232d685c3"

NAMED: Mapping[str, HubDataset] = MappingProxyType(
    {
        "ptb": HubDataset("ptb-text-only/ptb_text_only", "penn_treebank", "sentence", revision=CONVERTED),
        "wikitext2": HubDataset("Salesforce/wikitext", "wikitext-2-raw-v1", revision=_WIKITEXT),
        "wikitext103": HubDataset("Salesforce/wikitext", "wikitext-103-raw-v1", revision=_WIKITEXT),
        "lambada": HubDataset("EleutherAI/lambada_openai", "default", parts={"test": "test"}),
        "lm1b": HubDataset(
            "billion-word-benchmark/lm1b", parts={"train": "train", "test": "test"}, revision=CONVERTED
        ),
        "ag_news": HubDataset(
            "fancyzhx/ag_news",
            parts={"train": "train", "test": "test"},
            revision="eb185aade064a813bc0b7f42de02595523103ca4",
        ),
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
"""The data sets by name, with their places on the hub."""


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
    """One part of a data set; each row, from the hub or from a copy, is a document.

    Attributes:
        name: A name of `NAMED`.
        part: The part; if only one of validation and test exists, it stands for both.
        folder: Folder of local copies; None for none.
        cache: Cache folder of the `datasets` library; None for its default.
        detokenize: Whether the text is detokenised as in the literature, or left as it is.

    Raises:
        ValueError: If the name is unknown.
    """

    name: str
    part: Part = "test"
    folder: Path | None = field(default_factory=data_folder)
    cache: Path | None = None
    detokenize: bool = True

    def __post_init__(self) -> None:
        if self.name not in NAMED:
            raise ValueError(f"there is no data set {self.name!r}; known: {', '.join(NAMED)}.")

    @property
    def detokenizer(self) -> str | None:
        """Name of the detokenizer; None if the text is left as it is."""
        return detokenizer_of(self.name) if self.detokenize else None

    def documents(self) -> Iterator[str]:
        return map(self._mended, self._rows())

    def _rows(self) -> Iterator[str]:
        """Every row of the hub, empty ones included."""
        copy = self._copy()
        if copy is None:
            return self._from_hub()
        if isinstance(copy, TextFiles) and rows_are_lines(self.name):
            return (row_of_line(self.name, line) for line in copy.lines())
        return copy.documents()

    def files(self) -> tuple[Path, ...]:
        copy = self._copy()
        return () if copy is None else copy.files()

    def version(self) -> str:
        return self.revision() or ""

    def _copy(self) -> JSONLines | TextFiles | None:
        """A corpus of the local copy, if there is one."""
        copy = self.local_copy()
        if copy is None:
            return None
        lines = copy.name.removesuffix(".gz").endswith(".jsonl") or (
            copy.is_dir() and not any(copy.rglob("*.txt*"))
        )
        return JSONLines((str(copy),)) if lines else TextFiles((str(copy),))

    def local_copy(self) -> Path | None:
        """The file or folder with a copy of this part, if there is one."""
        if self.folder is None:
            return None
        parts = ("validation", "valid") if self.part == "validation" else (self.part,)
        places = [f"{self.name}{between}{part}" for part in parts for between in ("/", "-", "_", "_raw_")]
        stems = (*places, self.name)
        files = (self.folder / f"{stem}{ending}" for stem in stems for ending in ENDINGS)
        return next((path for path in (*files, self.folder / self.name) if path.exists()), None)

    def revision(self) -> str | None:
        """The commit of the hub that the text is from; None for a local copy.

        If the `datasets` library does not record it, this is the requested branch or commit.

        Raises:
            ValueError: If the data set cannot be loaded.
        """
        if self.local_copy() is not None:
            return None
        files = getattr(getattr(self._fetched(), "info", None), "download_checksums", None) or {}
        commits = (_COMMIT.search(address) for address in files)
        return next((commit[1] for commit in commits if commit), NAMED[self.name].revision)

    def _mended(self, row: str) -> str:
        """A row without surrounding white space; a detokenised one keeps its line breaks, as in the literature."""
        return row.strip() if self.detokenizer is None else DETOKENIZERS[self.detokenizer](row).strip(" ")

    def _from_hub(self) -> Iterator[str]:
        column = NAMED[self.name].column
        for number, row in enumerate(self._fetched()):
            text = row[column]
            if not isinstance(text, str):
                raise ValueError(
                    f"row {number} of the data set {self.name!r} has no text under {column!r}, but "
                    f"{type(text).__name__}."
                )
            yield text

    def _fetched(self) -> Any:
        """The rows of the hub, or an error that names both ways to supply them."""
        try:
            return self._loaded()
        except ModuleNotFoundError as error:
            raise ValueError(self._absent("the package `datasets` is not installed")) from error
        except (OSError, ValueError) as error:
            raise ValueError(self._absent(f"the hub did not provide it: {one_line(error)}")) from error

    def _loaded(self) -> Any:
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
        files = f"{self.name}.txt, {self.name}-{self.part}.txt, {self.name}_raw_{self.part}.txt, {self.name}.jsonl"
        where = (
            f"in {self.folder}"
            if self.folder
            else f"(set {DATA_DIR} or --data-dir to the folder that has it)"
        )
        return (
            f"the data set {self.name!r} is not here: there is no {files} or {self.name}/ {where}, and {reason}. Put a "
            'copy there, or fetch it with `pip install "hdlm[eval]"` where the hub can be reached.'
        )
