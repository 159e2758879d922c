"""Options of commands that come from the library: the fields of a dataclass, or the arguments of a function.

A flag has the name, the type, the choices and the default of its field. Its help is the entry of the field under
`Attributes:` or `Args:`. All of it is read from the source with `ast`: an import of the class would import torch, and
`hdlm VERB --help` answers without it. jsonargparse, tyro, cyclopts and simple-parsing do this for classes that are
imported. They take a tenth of a second more to start. They also own the parser, but the commands need its one-line
messages and its checks of outputs.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
from functools import cache
from importlib import import_module
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

from hdlm.cli._streams import can_print

if TYPE_CHECKING:
    import torch

REQUIRED: Final = ...
"""Placeholder for the default of a field without one."""
_METAVARS = {
    "data_dir": "FOLDER",
    "eta_sweep": "ETA",
    "hyperschedule": "FAMILY",
    "infill": "SHARE",
    "judge": "MODEL",
    "reference": "DATA",
}
"""Placeholder for the value of a field in help texts, if it differs from the name of the flag."""


def at_least_one(text: str) -> int:
    """The `type` of an argument that is a count.

    Raises:
        ArgumentTypeError: If it is not a whole number, or less than 1.
    """
    number = int(text) if text.strip().removeprefix("-").isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1; got {text!r}")
    return number


def whole_number(text: str) -> int:
    """The `type` of an argument that is a whole number and may be 0.

    Raises:
        ArgumentTypeError: If it is not a whole number, or negative.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 0; got {text!r}")
    return int(text)


def count_or_auto(text: str) -> int | None:
    """The `type` of a count that the program may choose: None for `auto`."""
    return None if text == "auto" else at_least_one(text)


_TYPES: dict[str, dict[str, Any]] = {
    "bool": {"type": bool},
    "float": {"type": float, "metavar": "X"},
    "int": {"type": at_least_one, "metavar": "N"},
    "object": {"type": str},
    "Path": {"type": Path},
    "str": {"type": str},
}
"""Arguments of `add_argument` by the annotation of a field."""


class Declared(NamedTuple):
    """A field of a dataclass or an argument of a function, as its source declares it.

    Attributes:
        module: The module that declares it.
        annotation: The annotated type.
        value: The default; None if there is none.
        text: The documentation as a help text: without a capital and a full stop.
    """

    module: str
    annotation: ast.expr
    value: ast.expr | None
    text: str

    @property
    def default(self) -> Any:
        """The value of the default; `REQUIRED` if there is none."""
        return REQUIRED if self.value is None else _value(self.module, self.value)


@final
class Options:
    """Flags of a command that stand for the fields of a dataclass or the arguments of a function.

    Args:
        source: Module and name, such as `"hdlm.generation.settings:Settings"`.
        default_of: The object with the defaults, if the declaration has none: a flag that is left out is then None.
        only: The fields that are read from flags of the same name; by default all that are not excluded.
        otherwise: Reason why the other fields have no flag, if `only` is given.
        excluded: Fields that are not read from flags of the same name, and why.

    Attributes:
        source: The source as given.
        default_of: The object with the defaults, as given.
    """

    def __init__(
        self,
        source: str,
        default_of: str = "",
        /,
        only: tuple[str, ...] = (),
        otherwise: str = "",
        **excluded: str,
    ) -> None:
        self.source, self.default_of = source, default_of
        self._only, self._otherwise, self._excluded = only, otherwise, excluded

    @property
    def excluded(self) -> dict[str, str]:
        """The fields that are not read from flags of the same name, and why."""
        others = [name for name in self.declared if self._only and name not in self._only]
        return dict.fromkeys(others, self._otherwise) | self._excluded

    @property
    def declared(self) -> dict[str, Declared]:
        """The declarations of the source, by field."""
        return _declared(*self.source.split(":"))

    @property
    def names(self) -> list[str]:
        """The fields that are not excluded."""
        excluded = self.excluded
        return [name for name in self.declared if name not in excluded]

    def add(
        self, parser: argparse._ActionsContainer, *names: str, flags: tuple[str, ...] = (), **changes: Any
    ) -> None:
        """Add flags to a parser.

        Args:
            parser: The parser or group for the flags.
            names: Fields of the flags; by default all that are not excluded.
            flags: The flags of the field, if their names differ.
            changes: Arguments of `add_argument` that replace those of the declaration.
        """
        for name in names or self.names:
            words = _argument(self.declared[name], self.default_of)
            if name in _METAVARS and "action" not in words:
                words["metavar"] = _METAVARS[name]
            parser.add_argument(
                *(flags or (f"--{name.replace('_', '-')}",)), **({"dest": name} | words | changes)
            )

    def values(self, args: argparse.Namespace) -> dict[str, Any]:
        """The values of the flags by field; a field without a flag in this command is left out."""
        given = {name: getattr(args, name) for name in self.names if hasattr(args, name)}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}

    def read(self, args: argparse.Namespace, **others: Any) -> Any:
        """The dataclass with the values of the flags, and with other values for fields that are excluded."""
        module, name = self.source.split(":")
        return getattr(import_module(module), name)(**self.values(args), **others)


def constant(source: str) -> Any:
    """The value of a constant of the library, such as `"hdlm.sharing.model_card:LICENCE"`."""
    return _value(*_resolve(*source.split(":")))


def choices(source: str) -> tuple[str, ...]:
    """The values of a `Literal` of the library, such as `"hdlm.attention:Context"`."""
    values: tuple[str, ...] = _type(*_resolve(*source.split(":")))["choices"]
    return values


def documented(docstring: str) -> dict[str, str]:
    """The entries of the section `Attributes:` or `Args:` of a docstring without its indentation."""
    section = re.search(r"^(?:Attributes|Args):\n((?:    .*\n?|\n)*)", docstring, flags=re.M)
    entries = re.findall(r"^    \*{0,2}(\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", flags=re.M)
    return {name: " ".join(text.split()) for name, text in entries}


@cache
def _tree(module: str) -> ast.Module:
    """The source of a module of the package, parsed."""
    path = Path(__file__).parents[1].joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _resolve(module: str, name: str) -> tuple[str, Any]:
    """The module of the package that defines a name, and the class, the function or the value that it defines."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return module, getattr(node, "value", None)
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return _resolve(str(node.module), name)
    raise LookupError(f"{module} does not define {name}")


@cache
def _declared(module: str, name: str) -> dict[str, Declared]:
    """The fields of a dataclass, or the arguments of a function, by name."""
    home, node = _resolve(module, name)
    if isinstance(node, ast.ClassDef):
        fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
        pairs = [(ast.unparse(field.target), field.annotation, field.value) for field in fields]
    else:
        plain, of_keywords = node.args.args, node.args.kwonlyargs
        defaults = [None] * (len(plain) - len(node.args.defaults)) + [
            *node.args.defaults,
            *node.args.kw_defaults,
        ]
        pairs = [(a.arg, a.annotation, b) for a, b in zip([*plain, *of_keywords], defaults, strict=True)]
    texts = documented(ast.get_docstring(node) or "")
    return {
        field: Declared(home, annotation, value, _as_help(texts.get(field, "")))
        for field, annotation, value in pairs
    }


def _as_help(text: str) -> str:
    text = (
        re.sub(r'`"([^"`]*)"`', r"\1", text).removesuffix(".").replace("%", "%%").removeprefix("Whether to ")
    )
    return text[0].lower() + text[1:] if text.partition(" ")[0].istitle() else text


def _value(module: str, node: ast.expr) -> Any:
    """The value of a default: a literal, a constant by name, or the argument of `field(default=...)`."""
    if isinstance(node, ast.Name):
        return _value(*_resolve(module, node.id))
    if isinstance(node, ast.Call):
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        return _value(module, given["default"]) if "default" in given else None
    return node.attr if isinstance(node, ast.Attribute) else ast.literal_eval(node)


def _argument(declared: Declared, default_of: str) -> dict[str, Any]:
    """The arguments of `add_argument` for a field."""
    words, text, default = _type(declared.module, declared.annotation), declared.text, declared.default
    if default == 0 and words.get("type") is at_least_one:
        words["type"] = int  # where 0 is the default, a number is not a count
    if words.get("type") is bool:
        words = {"action": "store_false" if default is True else "store_true"}
    elif default is REQUIRED:
        words["required"] = True
    else:
        words["default"] = default
    if default_of:
        return words | {"help": f"{text} (default: {default_of})", "default": None}
    if default in (None, "", (), REQUIRED) or isinstance(default, bool) or "default" in text:
        return words | {"help": text}
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return words | {"help": f"{text} (default: {shown})"}


def _type(module: str, node: ast.expr) -> dict[str, Any]:
    """`type`, `choices` and `nargs` of an annotation; of a union, those of its first member."""
    if isinstance(node, ast.BinOp):
        return _type(module, node.left)
    if isinstance(node, ast.Subscript):
        kind = ast.unparse(node.value)
        if kind == "Literal":
            values = ast.literal_eval(node.slice)
            return {"choices": values if isinstance(values, tuple) else (values,)}
        if kind == "tuple" and isinstance(node.slice, ast.Tuple):
            return _type(module, node.slice.elts[0]) | {"nargs": "+"}
    if isinstance(node, ast.Name):
        if node.id in _TYPES:
            return dict(_TYPES[node.id])
        return _type(*_resolve(module, node.id))
    return {"type": str}


def add_seed(parser: argparse._ActionsContainer, default: int = 0) -> None:
    """Add `--seed`, for a command without a dataclass that has this field."""
    parser.add_argument(
        "--seed", type=int, default=default, help="seed of all randomness (default: %(default)s)"
    )


def add_device(parser: argparse._ActionsContainer) -> None:
    """Add `--device` and `--threads`; `chosen_device` takes their values."""
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, an accelerator such as cuda or cuda:1, or auto: an accelerator if there is one that "
        "computes in float64, else cpu (default)",
    )
    parser.add_argument(
        "--threads",
        type=at_least_one,
        metavar="N",
        help="threads to compute with on a CPU (default: $OMP_NUM_THREADS, else the fastest number, measured)",
    )


def chosen_device(name: str, num_threads: int | None = None, recorded_threads: int = 0) -> torch.device:
    """The device that `--device` names; on a CPU, the number of threads is set as well.

    Args:
        name: The value of `--device`.
        num_threads: The value of `--threads`.
        recorded_threads: The number of threads of the run to resume; 0 if there is none.

    Raises:
        ValueError: If there is no such device here, or it does not support float64.
    """
    device = named_device(name)
    set_threads(device, num_threads, recorded_threads)
    return device


def named_device(name: str) -> torch.device:
    """The device that `--device` names.

    Raises:
        ValueError: If there is no such device here, or it does not support float64.
    """
    from hdlm import devices

    try:
        return devices.find_device(name)
    except ValueError as error:
        raise ValueError(f"--device {error}") from error


def set_threads(
    device: torch.device, num_threads: int | None, recorded_threads: int = 0, *, flops: float = inf
) -> None:
    """Set the number of threads as `--threads` says; without it, only if the device is a CPU."""
    from hdlm import threads

    if device.type == "cpu" or num_threads is not None:
        threads.set_num_threads(num_threads, recorded_threads, flops=flops)


def add_json(parser: argparse._ActionsContainer) -> None:
    """Add `--json`; `print_json` prints the result."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON, for other programs")


def print_json(result: Any) -> None:
    """Print one JSON document on standard output, in ASCII if its encoding lacks some of the characters."""
    text = json.dumps(result, ensure_ascii=False)
    print(text if can_print(text) else json.dumps(result))
