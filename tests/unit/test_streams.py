"""Standard streams in every state: closed, without a reader, full, and in any encoding, for every command."""

from __future__ import annotations

import io
import itertools
import json
import os
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hdlm.cli import _registry, main
from hdlm.cli._errors import guarded

UNBUFFERED = {"PYTHONUNBUFFERED": "1"}
ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "strict ascii": {"PYTHONIOENCODING": "ascii:strict"},
    "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}
SHOW = "show hyperschedule block --length 32"
PUBLISHED = ("train", "finetune", "eval_generation", "eval_modeling")
PRINTERS = {
    "print": "print('é±' * 100000)",
    "rich": "from rich.console import Console; Console().print('é±' * 100000)",
    "write": "import sys; sys.stdout.write('é±' * 100000)",
    "little": "print('é±')",
    "json": "from hdlm.cli._options import print_json; print_json({'text': 'é中' * 100000})",
}
"""Ways to print, as the body of a verb."""


def _mark_others_slow(cases: list[Any], *always: Any) -> list[Any]:
    """All cases, of which those not in `always` are marked slow."""
    return [case if case in always else pytest.param(*case, marks=pytest.mark.slow) for case in cases]


BUFFERS = _mark_others_slow(
    [(way, env) for way in PRINTERS for env in ({}, UNBUFFERED)], ("rich", UNBUFFERED), ("print", {})
)
VERB = '"""Try."""\ndef add_arguments(parser): pass\ndef run(args):\n'
STUB = """
import sys
from hdlm.cli import _registry, main
_registry.__file__, _registry.__package__ = {folder!r} + "/_registry.py", "_stubs"
sys.path.insert(0, {parent!r})
raise SystemExit(main(["try-it"]))
"""


def _shell(line: str, folder: Path, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run a line of bash in which `HDLM` is the program: its exit status, standard output and standard error."""
    line = line.replace("HDLM", f"{shlex.quote(sys.executable)} -m hdlm")
    own = ("PYTHONUNBUFFERED", "PYTHONIOENCODING", "PYTHONUTF8", "LC_ALL")
    inherited = {name: value for name, value in os.environ.items() if name not in own}
    ran = subprocess.run(
        ["bash", "-c", line],
        env={**inherited, "COLUMNS": "80", **(environment or {})},
        cwd=folder,
        capture_output=True,
        timeout=300,
    )
    return ran.returncode, ran.stdout.decode(errors="replace"), ran.stderr.decode(errors="replace")


@pytest.fixture
def stub(tmp_path: Path) -> Callable[[str], str]:
    """A program whose only verb does something; the answer is how a shell starts it."""

    def make(body: str) -> str:
        package = tmp_path / "_stubs"
        package.mkdir()
        (package / "__init__.py").write_text("")
        verb = VERB + textwrap.indent(body, "    ") + "\n    return 0\n"
        (package / "try_it.py").write_text(verb, encoding="utf-8")
        program = tmp_path / "program.py"
        program.write_text(STUB.format(folder=str(package), parent=str(tmp_path)))
        return f"{shlex.quote(sys.executable)} {shlex.quote(str(program))}"

    return make


# a reader that leaves


@pytest.mark.parametrize(("way", "environment"), BUFFERS)
def test_closed_pipe_exits_with_141(stub, tmp_path, way, environment) -> None:
    line = f"{stub(PRINTERS[way])} | true; echo ${{PIPESTATUS[0]}}"
    assert _shell(line, tmp_path, environment) == (0, "141\n", "")


@pytest.mark.parametrize("reader", ["true", pytest.param("head -c 5 >head", marks=pytest.mark.slow)])
def test_show_with_closed_pipe_exits_with_141(tmp_path: Path, reader: str) -> None:
    """The picture of `show` fits into a pipe buffer, and the JSON of many levels does not."""
    words = SHOW if reader == "true" else "show hyperschedule flat --levels 4000 --json"
    line = f"HDLM {words} | {reader}; echo ${{PIPESTATUS[0]}}"
    assert _shell(line, tmp_path, UNBUFFERED) == (0, "141\n", "")


def test_error_message_to_closed_pipe_prints_nothing(stub, tmp_path) -> None:
    line = f"{stub('raise ValueError(1)')} 2>&1 >&- | true; echo ${{PIPESTATUS[0]}}"
    status, out, err = _shell(line, tmp_path)
    assert (status, err) == (0, "")
    assert out in ("2\n", "141\n")


# closed streams


@pytest.mark.parametrize(
    ("closed", "printed", "said"),
    _mark_others_slow(
        [
            (">&-", "", "2"),
            ("2>&-", "1", ""),
            (">&- 2>&-", "", ""),
            ("<&- >&- 2>&-", "", ""),
            ("<&-", "1", "2"),
        ],
        (">&-", "", "2"),
        ("<&- >&- 2>&-", "", ""),
    ),
)
def test_closed_streams_lose_only_their_own_output(stub, tmp_path, closed, printed, said) -> None:
    """A file that is opened later must not get the descriptor and the output of a closed stream."""
    body = """
        import os, subprocess, sys
        from rich.console import Console
        with open("result", "wb", buffering=0) as file:
            assert file.fileno() > 2
            print(1)
            Console().print("", end="")
            Console(stderr=True).print("", end="")
            print(2, file=sys.stderr)
            sys.stdout.isatty(), sys.stderr.isatty(), os.write(1, b""), os.write(2, b"")
            subprocess.run([sys.executable, "-c", "pass"], check=True)
            file.write(b"result")
    """
    status, out, err = _shell(f"{stub(textwrap.dedent(body))} {closed}", tmp_path)
    assert (status, out.strip(), err.strip()) == (0, printed, said)
    assert (tmp_path / "result").read_bytes() == b"result"


@pytest.mark.parametrize(
    ("closed", "words", "status"),
    _mark_others_slow(
        [
            (closed, words, status)
            for closed in (">&-", "2>&-", ">&- 2>&-")
            for words, status in ((SHOW, 0), ("show hyperschedule blok", 2), ("info", 0), ("", 0))
        ],
        (">&-", SHOW, 0),
        (">&- 2>&-", "show hyperschedule blok", 2),
    ),
)
def test_commands_with_closed_streams_keep_exit_status(
    tmp_path: Path, closed: str, words: str, status: int
) -> None:
    found, out, err = _shell(f"HDLM {words} {closed}", tmp_path)
    assert found == status
    assert "Traceback" not in out + err


# a full disk: no file may have more bytes than none


@pytest.mark.parametrize(("way", "environment"), BUFFERS)
def test_full_disk_on_standard_output_prints_one_line(stub, tmp_path, way, environment) -> None:
    line = f"{stub(PRINTERS[way])} >full"
    status, out, err = _shell(
        f"ulimit -f 0; {line}", tmp_path, {**environment, "PYTHONDONTWRITEBYTECODE": "1"}
    )
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("hdlm try-it: ")
    assert "File too large" in err


def test_unwritable_result_goes_to_standard_output_or_error(stub, tmp_path) -> None:
    body = "from hdlm.atomic import keeping\nwith keeping(lambda: 'the result'):\n    "
    body += "open('full', 'wb', buffering=0).write(b'x')"
    program = f"ulimit -f 0; {stub(body)}"
    environment = {"PYTHONDONTWRITEBYTECODE": "1"}
    status, out, err = _shell(program, tmp_path, environment)
    assert (status, out) == (2, "the result\n")
    assert "File too large" in err
    status, out, err = _shell(f"{program} >full-too", tmp_path, environment)
    assert (status, out) == (2, "")
    assert err.startswith("the result\nhdlm try-it: ")


# encodings


@pytest.mark.parametrize(
    ("way", "encoding"), _mark_others_slow([(w, e) for w in PRINTERS for e in ENCODINGS], ("rich", "ascii"))
)
def test_printing_succeeds_in_every_encoding(stub, tmp_path, way, encoding) -> None:
    status, out, err = _shell(stub(PRINTERS[way]), tmp_path, ENCODINGS[encoding])
    assert (status, err) == (0, "")
    if way == "json":
        assert json.loads(out)["text"] == "é中" * 100000


def test_print_json_is_equal_in_every_encoding(capsys, monkeypatch) -> None:
    from hdlm.cli._options import print_json

    document = {"text": "é ± 中 😀 \udce9", "rows": ["±" * 3, 1.5, None]}
    for encoding in ("ascii", "cp1252", "latin-1", "utf-8", "utf-16", "shift-jis"):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
        assert guarded("hdlm", lambda _: print_json(document) or 0, []) == 0
        assert json.loads(written.getvalue().decode(encoding, "surrogatepass")) == document


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "koi8-r"])
def test_characters_outside_encoding_are_replaced(monkeypatch, encoding) -> None:
    """Characters of the encoding are written unchanged."""
    text = "".join(map(chr, [*range(0x20, 0x3000), 0x4E2D, 0xDC80, 0xDCFF, 0x1F600]))
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    assert guarded("hdlm", lambda _: print(text) or 0, []) == 0
    has = [character for character in text if character.encode(encoding, "ignore")]
    rest = iter(written.getvalue().decode(encoding))
    assert all(character in rest for character in has), "a character that the encoding has was lost"


def _printed_on_console(monkeypatch: pytest.MonkeyPatch, encoding: str, words: list[str]) -> str:
    """What a command prints on a console of this encoding, from within this process."""
    written = io.BytesIO()
    console = io.TextIOWrapper(written, encoding=encoding)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", console)
        assert main(words) == 0
    return written.getvalue().decode(encoding)


def test_text_picture_keeps_its_shape_in_ascii(monkeypatch) -> None:
    plain, simple = (
        _printed_on_console(monkeypatch, name, SHOW.split()).splitlines() for name in ("utf-8", "ascii")
    )
    assert [len(line) for line in simple] == [len(line) for line in plain]
    kinds = [set("".join(lines[1:-2])) - set("0123456789 ") for lines in (plain, simple)]
    assert len(kinds[0]) == len(kinds[1]) == 5


def test_train_command_on_ascii_console(tmp_path: Path, monkeypatch) -> None:
    from tests.unit.test_cli_train import RECIPE

    (tmp_path / "tiny.toml").write_text(RECIPE)
    (tmp_path / "text.txt").write_text("the cat sat on the mat . " * 100, encoding="utf-8")
    words = (
        f"train --text {tmp_path}/text.txt --recipe {tmp_path}/tiny.toml --output {tmp_path}/run --steps 2"
    )
    assert "+-" in _printed_on_console(monkeypatch, "ascii", words.split())


# words that are no text


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "kjv-epsilon-4m", "--prompt", "caf\udce9"],
        ["sample", "kjv-epsilon-4m", "-o", "caf\udce9"],
        ["train", "--output", "caf\udce9"],
        ["caf\udce9"],
        ["--caf\udce9"],
        ["show", "caf\udce9"],
    ],
    ids=ascii,
)
def test_undecodable_arguments_are_refused_in_one_line(capsys, words) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "the argument 'caf\\udce9' has bytes that are not text" in said.err.replace("--caf", "caf")


@pytest.mark.parametrize("verb", _registry.verbs())
def test_every_verb_refuses_undecodable_argument(capsys, verb) -> None:
    assert main([verb, "caf\udce9"]) == 2
    assert capsys.readouterr().err.startswith(f"hdlm {verb}: the argument 'caf\\udce9'")


def test_undecodable_bytes_of_shell_are_refused(tmp_path: Path) -> None:
    status, out, err = _shell(
        "HDLM sample kjv-epsilon-4m --prompt $'caf\\xe9'", tmp_path, {"PYTHONUTF8": "1"}
    )
    assert (status, out) == (2, "")
    assert err == (
        "hdlm sample: the argument 'caf\\udce9' has bytes that are not text in utf-8; give it in that encoding, and "
        "rename a file of such a name.\n"
    )


# every command

STATES = {
    "no reader": ("PROGRAM | true; exit ${PIPESTATUS[0]}", {141}),
    "no reader, unbuffered": (
        "export PYTHONUNBUFFERED=1; PROGRAM | true; exit ${PIPESTATUS[0]}",
        {141},
    ),
    "closed": ("PROGRAM >&-", {0}),
    "all closed": ("PROGRAM >&- 2>&-", {0}),
    "ascii": ("PYTHONIOENCODING=ascii PROGRAM", {0}),
}


VERBS = [f"-m hdlm {verb} --help" for verb in _registry.verbs()]
ROTATION = [
    (name, list(STATES)[(at + step) % len(STATES)]) for at, name in enumerate(PUBLISHED) for step in (0, 2)
]
"""Two states for each published command, which takes seconds to start. Each state occurs."""


@pytest.mark.slow
@pytest.mark.parametrize(("command", "state"), [*itertools.product(VERBS, STATES), *ROTATION])
def test_every_command_in_every_stream_state_exits_silently(
    tmp_path: Path, repository: Path, command: str, state: str
) -> None:
    if command in PUBLISHED:
        command = f"{repository / 'hdlm' / command}.py --help"
    line, statuses = STATES[state]
    if "hdlm/" in command:
        statuses = statuses | {0}  # argparse itself hides that nobody reads the help
    status, _, err = _shell(line.replace("PROGRAM", f"{shlex.quote(sys.executable)} {command}"), tmp_path)
    assert status in statuses, err
    assert err == ""


@pytest.mark.parametrize("command", ["--help"])
@pytest.mark.parametrize("state", STATES)
def test_help_in_every_stream_state_exits_silently(tmp_path: Path, command: str, state: str) -> None:
    line, statuses = STATES[state]
    status, _, err = _shell(line.replace("PROGRAM", f"HDLM {command}"), tmp_path)
    assert status in statuses, err
    assert err == ""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_commands_refuse_undecodable_argument(name: str, monkeypatch, capsys) -> None:
    from importlib import import_module

    monkeypatch.setattr(sys, "argv", [f"hdlm/{name}.py", "caf\udce9"])
    assert import_module(f"hdlm.{name}").main() == 2
    assert capsys.readouterr().err.startswith(f"hdlm/{name}.py: the argument 'caf\\udce9' has bytes")
