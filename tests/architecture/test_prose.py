"""Documentation is written in plain English: habits that a reader stumbles over do not come back.

`allowed_prose.json` holds the number of faults of each file. A file may have fewer, and then its number must fall:
`python tests/architecture/test_prose.py` writes the file again. It refuses a sum that is larger than before.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ALLOWED = Path(__file__).with_name("allowed_prose.json")
NOT_HELD = frozenset({"docs/log.md"})  # a record of experiments, kept as it was written
_WRITTEN_BY_A_MODEL = re.compile(r"^```text$.*?^```$", re.MULTILINE | re.DOTALL)
SHORTEST_FIELD = 3
"""Words that the documentation of a field or an argument has at least."""

HABITS = {
    habit: re.compile(habit, re.IGNORECASE)
    for habit in (
        r"\banew\b",
        r"\bof each of them\b",
        r"\bof all of them\b",
        r"\b(?:go|goes|going|went|gone) on\b",  # resume, continue
        r"(?<!\bthere )\b(?:is|are|was|be) no (?!longer\b|more\b|less\b|other\b)[a-z]+",  # is not a
        r"\bhas no say\b",
        r"\b(?:told|tell|tells|telling)\b",  # gets, receives
        r"\b(?:hear|hears|heard)\b",
        r"\b(?:speaks?|spoken|spoke)\b",
        r"\bbesides\b",
        r"\botherwise than\b",
        r"\blearnt\b",
        r"\b(?:can|could|to|may) be had\b",
        r"\bnobody\b",
        r"\bwithout a fuss\b",
        r"\bmade up for\b",
        r"\bsay of (?:it|them)sel(?:f|ves)\b",
    )
}
"""The banned habits: REVIEW's list of worst sentences, and what is behind them."""

_SECTION = re.compile(r"^\s*(?:Args|Arguments|Attributes):\s*$")
_ENTRY = re.compile(r"^(\s+)\*{0,2}\w+(?: \([^)]*\))?: ?(.*)$")


def short_fields(docstring: str) -> Iterator[str]:
    """Entries of `Args:` and `Attributes:` whose text has fewer words than `SHORTEST_FIELD`."""
    indent: int | None = None
    entries: list[list[str]] = []
    inside = False
    for line in [*docstring.expandtabs().splitlines(), "end"]:
        depth = len(line) - len(line.lstrip())
        if _SECTION.match(line):
            inside, indent = True, None
        elif inside and line.strip():
            entry = _ENTRY.match(line)
            indent = depth if indent is None else indent
            if depth < indent:
                inside = False
            elif depth == indent and entry:
                entries.append([line.strip().split(":")[0], entry[2]])
            elif entries:
                entries[-1][1] += " " + line.strip()
    yield from (name for name, text in entries if len(text.split()) < SHORTEST_FIELD)


def _documented(tree: ast.Module) -> Iterator[str]:
    """Docstrings of modules, classes and functions, and the strings below attributes."""
    for node in ast.walk(tree):
        body = getattr(node, "body", [])
        for child in body if isinstance(body, list) else []:
            value = child.value if isinstance(child, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.value


def faults(name: str, text: str) -> Counter[str]:
    """Count the faults of a file by kind.

    Args:
        name: The path of the file; Python files are read for their docstrings and comments.
        text: The contents of the file.

    Returns:
        The number of matches of each habit, and of `short field`.
    """
    found: Counter[str] = Counter()
    prose = [_WRITTEN_BY_A_MODEL.sub("", text)]
    if name.endswith(".py"):
        docstrings = list(_documented(ast.parse(text)))
        found["short field"] = sum(1 for docstring in docstrings for _ in short_fields(docstring))
        prose = [*docstrings, *re.findall(r"(?:^|\s)# (.*)$", text, re.MULTILINE)]
    for passage in prose:
        words = " ".join(passage.split())
        for habit, pattern in HABITS.items():
            found[habit] += len(pattern.findall(words))
    return +found


def files() -> Iterator[Path]:
    """The pages of the repository and the modules of the package."""
    yield from sorted(REPOSITORY.glob("*.md"))
    yield from sorted((REPOSITORY / "docs").rglob("*.md"))
    yield from sorted((REPOSITORY / "hdlm").rglob("*.py"))


@functools.cache
def counted() -> dict[str, Counter[str]]:
    """The faults of every file that has some."""
    names = {path.relative_to(REPOSITORY).as_posix(): path for path in files()}
    found = {name: faults(name, path.read_text(encoding="utf-8")) for name, path in names.items()}
    return {name: count for name, count in found.items() if count and name not in NOT_HELD}


def allowed() -> dict[str, int]:
    return json.loads(ALLOWED.read_text())


def test_files_do_not_exceed_allowed_prose_faults() -> None:
    allowance, found = allowed(), counted()
    worse = {name: dict(n) for name, n in found.items() if n.total() > allowance.get(name, 0)}
    assert not worse, f"write plainly (see CONTRIBUTING.md); {ALLOWED.name} never rises: {worse}"


def test_allowed_prose_faults_are_not_too_high() -> None:
    found = counted()
    higher = {name: n for name, n in allowed().items() if n > found.get(name, Counter()).total()}
    assert not higher, (
        f"there are fewer faults now; run `python {Path(__file__).relative_to(REPOSITORY)}`: {higher}"
    )


def test_faults_counts_each_habit() -> None:
    fields = "Args:\n        x: Of each of them.\n        y: That.\n        z: The weight of a row."
    code = f'def f(x):\n    """A run goes on.\n\n    {fields}\n    """\n    return "anew"  # it is no checkpoint\n'
    found = faults("a.py", code)
    assert found["short field"] == 1  # `y`; the words of `x` are a habit
    assert found[r"\bof each of them\b"] == 1
    assert found[r"\banew\b"] == 0  # a string of the program, which no reader of documentation sees
    assert found.total() == 4
    assert faults("a.md", "It is no model. There is no model. It is no longer a model.").total() == 1
    assert faults("a.md", "The optimizer begins\nanew.").total() == 1
    assert not faults("a.md", "A run is resumed. It is not a checkpoint.")


def test_short_fields_joins_entries_of_several_lines() -> None:
    docstring = "Sum.\n\nArgs:\n    x: The\n        first number.\n    y: Yes.\n\nReturns:\n    x: No."
    assert list(short_fields(docstring)) == ["y"]


def _lower_allowances() -> None:
    now = {name: count.total() for name, count in counted().items()}
    if ALLOWED.exists() and sum(now.values()) > sum(allowed().values()):
        sys.exit(f"There are {sum(now.values())} faults, and {sum(allowed().values())} are allowed.")
    ALLOWED.write_text(json.dumps(now, indent=1) + "\n")


if __name__ == "__main__":
    _lower_allowances()
