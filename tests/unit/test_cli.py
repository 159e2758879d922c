"""The command line: what it prints, what it answers to a mistake, and that a verb is one file."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import textwrap

import pytest

from hdlm.cli import _registry, main
from hdlm.cli._errors import EXTRAS, explained

VERB = '''
"""Try something.

At length.
"""

def add_arguments(parser):
    parser.add_argument("--x")

def run(args):
'''


@pytest.fixture
def hdlm(capsys):
    """Run `hdlm`; the answer is (exit status, standard output, standard error)."""

    def run(*words: str) -> tuple[int, str, str]:
        try:
            status = main(words)
        except SystemExit as leaving:
            status = leaving.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def verb(tmp_path, monkeypatch):
    """Drop the file of a verb that does `body`, and call it `try`."""

    def make(body: str) -> None:
        package = tmp_path / "_cli_under_test"
        package.mkdir()
        source = VERB + textwrap.indent(textwrap.dedent(body), "    ")
        (package / "try_it.py").write_text(source)
        (package / "__init__.py").write_text("")
        (package / "_private.py").write_text("raise RuntimeError('not a verb')")
        monkeypatch.setattr(_registry, "__file__", str(package / "_registry.py"))
        monkeypatch.setattr(_registry, "__package__", "_cli_under_test")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "_cli_under_test.try_it", raising=False)
        monkeypatch.delitem(sys.modules, "_cli_under_test", raising=False)

    return make


def test_help_lists_verbs_without_heavy_imports():
    probe = (
        "import sys; from hdlm.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    ran = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert "show " in ran.stdout


def test_help_of_every_verb_has_usage_and_examples(hdlm):
    for name, found in _registry.verbs().items():
        assert found.summary
        status, out, _ = hdlm(name, "--help")
        assert status == 0
        assert f"hdlm {name} " in out
        assert "xamples:" in out


def test_new_module_in_cli_package_is_a_verb(hdlm, verb):
    verb("print('did', args.x)\nreturn 3")
    assert hdlm("try-it", "--x", "it") == (3, "did it\n", "")
    assert "Try something\n" in hdlm()[1]
    assert "private" not in hdlm()[1]
    assert "At length." in hdlm("try-it", "--help")[1]


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("raise ValueError('give\\n  more')", "give more"),
        ("open('absent.txt')", "absent.txt: No such file or directory"),
        (
            "import json; json.loads('{')",
            "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
        (
            "raise ModuleNotFoundError('gone', name='matplotlib.figure')",
            'needs matplotlib, which is not installed: pip install "hdlm[view]"',
        ),
    ],
)
def test_user_error_prints_one_line_and_exits_with_2(hdlm, verb, body, line):
    verb(body)
    assert hdlm("try-it") == (2, "", f"hdlm try-it: {line}\n")


@pytest.mark.parametrize("fault", ["ModuleNotFoundError('gone', name='hdlm.absent')", "TypeError('bug')"])
def test_internal_error_keeps_its_traceback(hdlm, verb, fault):
    verb(f"raise {fault}")
    with pytest.raises((ModuleNotFoundError, TypeError)):
        hdlm("try-it")


def test_traceback_option_raises_user_error(hdlm, verb):
    verb("raise ValueError('bad')")
    with pytest.raises(ValueError, match="bad"):
        hdlm("--traceback", "try-it")


def test_keyboard_interrupt_exits_with_130(hdlm, verb):
    verb("raise KeyboardInterrupt")
    assert hdlm("try-it") == (130, "", "\nhdlm try-it: interrupted\n")


def test_closed_output_pipe_exits_with_141_and_no_message():
    """As in `hdlm show ... | head -1`."""
    command = [sys.executable, "-m", "hdlm", "show", "hyperschedule", "flat", "--levels", "4000", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_explained_names_type_of_error_without_message():
    assert explained(ValueError()) == "ValueError"
    assert explained(OSError(errno.ENOSPC, "No space left on device")) == "[Errno 28] No space left on device"


def test_extras_table_matches_pyproject(repository):
    text = (repository / "pyproject.toml").read_text()
    names = {"hydra": "hydra-core", "mauve": "mauve-text", "yaml": "PyYAML"}
    for package, extra in EXTRAS.items():
        listed = text.partition(f"\n{extra} = [")[2].partition("]\n")[0]
        assert f'"{names.get(package, package)}>=' in listed


@pytest.mark.parametrize(
    ("words", "end"),
    [
        ("trian", "'view'); did you mean `train`?"),
        ("nonsense", "'view')"),
        ("train --tekst x", "hdlm train: unrecognized arguments: --tekst; did you mean `--text`?"),
        ("sample m --lenght=20", "unrecognized arguments: --lenght=20; did you mean `--length`?"),
        ("show hyperschedule block --widht 3", "--widht 3; did you mean `--width`?"),
        ("show hyperschedule blok", "'published-wave'); did you mean `block`?"),
        ("sample m --hypersched flat", "--hypersched flat; did you mean `--hyperschedule`?"),
        ("sample m --zzz", "unrecognized arguments: --zzz"),
    ],
)
def test_misspelled_word_gets_suggestion(hdlm, words, end):
    status, out, err = hdlm(*words.split())
    assert (status, out) == (2, "")
    assert end + " (see `" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("compare a.json b.json", "there is no file a.json: give a result of `hdlm eval`, or the folder"),
        ("compare . .", "there is no file results.json: give a result of `hdlm eval`"),
        ("view a.json", "there is no file a.json: give a trace, which `hdlm sample --trace FILE` writes."),
        (
            "sample m --grid a.json",
            "there is no file a.json: give a file of grids, which `hdlm tune --output",
        ),
        ("study nothere --output o --dry-run", "there is no study 'nothere'; known: study/conversion, "),
        ("study noise --output o --dry-run", "or a TOML file of yours. Did you mean 'study/noise'?"),
        ("train --text nothere.txt --output o", "a folder of .txt/.txt.gz/.jsonl/.jsonl.gz/.parquet files"),
    ],
)
def test_absent_input_names_what_is_expected(hdlm, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = hdlm(*words.split())
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nonsense", "hdlm: argument VERB: invalid choice: 'nonsense'"),
        ("show", "hdlm show: the following arguments are required: WHAT"),
        ("show hyperschedule blok", "hdlm show hyperschedule: argument FAMILY: invalid choice: 'blok'"),
        ("show hyperschedule block --width 99", r"hdlm show: `width` must lie in [1, length=64]; got 99"),
        (
            "show hyperschedule block --length 0",
            "argument --length: must be a whole number, at least 1; got '0'",
        ),
        (
            "show hyperschedule block --width 0",
            "argument --width: must be a whole number, at least 1; got '0'",
        ),
        (
            "show hyperschedule block --levels 0",
            "argument --levels: must be a whole number, at least 1; got '0'",
        ),
        ("show hyperschedule flat --width 3", "hdlm show: --width has no effect on flat"),
        (
            "show hyperschedule block --length x",
            "argument --length: must be a whole number, at least 1; got 'x'",
        ),
        (
            "show hyperschedule block --output a.xyz",
            "hdlm show: --output a.xyz: a picture ends in .png, .svg or .pdf.",
        ),
        (
            "show attention block --step 99",
            "hdlm show: --step must lie in 0..32, the steps of this one; got 99",
        ),
        ("show attention published-slide --two-stream", "hdlm show: --two-stream needs a countdown"),
        ("show loss absent.jsonl", "hdlm show: absent.jsonl: No such file or directory"),
    ],
)
def test_show_rejects_bad_arguments_in_one_line(hdlm, words, message):
    status, out, err = hdlm(*words.split())
    assert status == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "family", ["autoregressive", "flat", "block", "slide", "wave", "published-slide", "published-wave"]
)
def test_show_hyperschedule_prints_every_family(hdlm, tmp_path, family):
    status, out, err = hdlm("show", "hyperschedule", family, "--length", "12")
    assert (status, err) == (0, "")
    assert "settled" in out
    status, out, _ = hdlm("show", "hyperschedule", family, "--length", "12", "--json")
    described = json.loads(out)
    assert len(described["levels"]) == described["num_steps"] + 1
    assert described["levels"][-1] == [0] * 12


def test_show_output_writes_png(hdlm, tmp_path):
    for words in (
        "hyperschedule block",
        "hyperschedules",
        "attention wave --two-stream --length 16 --width 8",
    ):
        picture = tmp_path / "picture.png"
        assert hdlm("show", *words.split(), "--output", str(picture)) == (0, f"wrote {picture}\n", "")
        assert picture.read_bytes().startswith(b"\x89PNG")
        picture.unlink()


def test_show_attention_json_equals_generation_attention(hdlm):
    from hdlm.attention import generation_attention
    from hdlm.hyperschedule import Block

    words = "show attention block --length 8 --width 4 --levels 2 --step 3 --context causal --json"
    shown = json.loads(hdlm(*words.split())[1])
    assert shown["visible"] == generation_attention(Block(8, 4, 2), 3, "causal").dense().int().tolist()


def test_show_loss_writes_picture(hdlm, tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.5}\n')
    output = tmp_path / "loss.png"
    assert hdlm("show", "loss", str(metrics), "--output", str(output))[0] == 0
    assert output.exists()
