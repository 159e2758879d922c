"""Everything that writes a file does so through `hdlm.atomic.replacing`, and text is in UTF-8 whatever the locale."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.architecture.source import Module, modules

WRITING_METHODS = {"write_text", "write_bytes", "savefig", "tofile", "touch"}
"""Methods of a path or a figure that write a file; `write_text` and `write_bytes` of the path that they belong to."""
WRITING_FUNCTIONS = {
    "torch.save": 1,
    "np.save": 0,
    "np.savez": 0,
    "np.savetxt": 0,
    "save_file": 1,
    "json.dump": 1,
    "pickle.dump": 1,
    "shutil.copyfile": 1,
    "shutil.copy": 1,
    "shutil.copy2": 1,
    "shutil.move": 1,
    "os.link": 1,
}
"""Functions that write a file, and which argument names it."""
OPENING = {"open", "fdopen"}
WRITING = WRITING_METHODS | {name.rpartition(".")[2] for name in WRITING_FUNCTIONS}
ALLOWED = {
    ("hdlm.atomic", "_pour"): "writes to a stream or a device",
    ("hdlm.training.monitor.watchers", "write"): "appends a line to the log, and takes back one that is torn",
    ("hdlm.evaluation.generation.samples", "_append"): "appends samples behind the last whole line",
    (
        "hdlm.training.checkpoints.store",
        "_to_disk",
    ): "opens files of a folder that is not in its place yet, to sync them",
    ("hdlm.cli._streams", "_nowhere"): "opens the null device",
}
"""Functions that write in another way, and why."""


def _writes(function: ast.AST) -> Iterator[tuple[int, str, str | None]]:
    """Calls that write a file: the line, the call, and the name of what holds the path if it is a plain name."""
    for node in ast.walk(function):
        if not isinstance(node, ast.Call) or (method := _method(node)) not in OPENING | WRITING:
            continue
        called = ast.unparse(node.func)
        if method == "open" and called != "os.open" and _mode(node, called) & set("wax+"):
            yield node.lineno, called, None
        elif method == "savefig":
            yield node.lineno, called, _plain_name(node.args[0])
        elif method in WRITING_METHODS and isinstance(node.func, ast.Attribute):
            yield node.lineno, called, _plain_name(node.func.value)
        elif called in WRITING_FUNCTIONS:
            yield node.lineno, called, _plain_name(node.args[WRITING_FUNCTIONS[called]])
        elif (
            called == "os.open" and "O_RDONLY" not in ast.unparse(node) and "devnull" not in ast.unparse(node)
        ) or (called == "os.fdopen" and "rb" not in ast.unparse(node)):
            yield node.lineno, called, None


def _method(call: ast.Call) -> str | None:
    """The last name of what is called; None if it has no name."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else None


def _mode(call: ast.Call, called: str) -> set[str]:
    """Letters of the mode in which a file is opened: the second argument of `open`, the first of `Path.open`."""
    given = [word.value for word in call.keywords if word.arg == "mode"]
    place = 1 if called in ("open", "gzip.open", "io.open") else 0
    mode = given[0] if given else call.args[place] if len(call.args) > place else None
    return set(str(mode.value)) if isinstance(mode, ast.Constant) and isinstance(mode.value, str) else set()


def _plain_name(node: ast.expr) -> str | None:
    return node.id if isinstance(node, ast.Name) else None


def _paths_of_replacing(function: ast.AST) -> set[str]:
    """Names that `replacing` lends in a function."""
    return {
        str(_plain_name(item.optional_vars))
        for node in ast.walk(function)
        if isinstance(node, ast.With)
        for item in node.items
        if isinstance(item.context_expr, ast.Call)
        and ast.unparse(item.context_expr.func) == "replacing"
        and item.optional_vars is not None
    }


def _unsafe_writes(module: Module) -> list[str]:
    """Calls of a module that write a file in another way."""
    functions = [n for n in ast.walk(module.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    fine = {
        line
        for function in functions
        for line, _, name in _writes(function)
        if name in _paths_of_replacing(function) or (module.name, function.name) in ALLOWED
    }
    return [f"line {line}: {call}" for line, call, _ in _writes(module.tree) if line not in fine]


def test_files_are_written_through_replacing() -> None:
    found = {module.name: astray for module in modules() if (astray := _unsafe_writes(module))}
    assert not found, "use hdlm.atomic.replacing"


@pytest.mark.parametrize(
    "line",
    [
        "path.write_text('x')",
        "(folder / 'name').write_bytes(b'x')",
        "open(path, 'w')",
        "path.open('ab')",
        "path.open(mode='r+b')",
        "gzip.open(path, 'wt')",
        "torch.save(state, path)",
        "np.save(path, rows)",
        "save_file(tensors, path)",
        "figure.savefig(path)",
        "shutil.copyfile(a, path)",
        "os.open(path, os.O_WRONLY)",
        "with replacing(path) as aside: path.write_text('x')",
    ],
)
def test_unsafe_writes_finds_every_way_to_write(line: str) -> None:
    module = modules()[0]
    wrong = Module("hdlm.wrong", module.path, ast.parse(f"def function():\n    {line}"))
    assert _unsafe_writes(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "with replacing(path) as aside: aside.write_text('x')",
        "with keeping(f), replacing(path) as aside: torch.save(state, aside)",
        "path.open('rb')",
        "gzip.open(path, 'rt')",
        "Shards.open(folder)",
        "os.open(path, os.O_RDONLY)",
    ],
)
def test_unsafe_writes_allows_reading_and_replacing(line: str) -> None:
    module = modules()[0]
    assert not _unsafe_writes(Module("hdlm.right", module.path, ast.parse(f"def function():\n    {line}")))


def test_allowed_writers_exist() -> None:
    there = {
        (module.name, node.name)
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef) and list(_writes(node))
    }
    assert set(ALLOWED) <= there


def test_text_files_are_opened_with_encoding() -> None:
    found = {module.name: astray for module in modules() if (astray := _without_encoding(module))}
    assert not found, "the locale must not decide"


def _without_encoding(module: Module) -> list[str]:
    """Calls of a module that read or write text without saying its encoding."""
    astray = []
    for node in module.nodes:
        if not isinstance(node, ast.Call) or (method := _method(node)) not in OPENING | {
            "read_text",
            "write_text",
        }:
            continue
        called = ast.unparse(node.func)
        text = isinstance(node.func, ast.Attribute) and method in ("read_text", "write_text")
        text |= called in ("open", "gzip.open") and "b" not in _mode(node, called)
        text |= isinstance(node.func, ast.Attribute) and method == "open" and _mode(node, called) > set()
        text &= "b" not in _mode(node, called)
        if text and not any(word.arg == "encoding" for word in node.keywords):
            astray.append(f"line {node.lineno}: {ast.unparse(node)}")
    return astray
