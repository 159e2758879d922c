"""The entry point: from the command line arguments to an exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from hdlm import __version__
from hdlm.cli._errors import BAD_INPUT, guarded
from hdlm.cli._outputs import check_outputs
from hdlm.cli._registry import Verb, verbs
from hdlm.cli._streams import say
from hdlm.strict_config import did_you_mean


class Parser(argparse.ArgumentParser):
    """Keeps the line breaks of help texts, and reports a mistake in one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse; an unknown word is a mistake, for which the parser of its verb suggests an option."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            options = [option[2:] for option in self._option_string_actions if option.startswith("--")]
            words = (word[2:].partition("=")[0] for word in unknown if word.startswith("--"))
            hints = (did_you_mean(word, options, "; did you mean `--{}`?") for word in words)
            hint = next(filter(None, hints), "")
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return known, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a word that is not one of the choices, and suggest one of them."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += did_you_mean(str(value), map(str, action.choices or ()))
            raise

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print; argparse itself ignores a closed pipe and a full disk."""
        if file is sys.stdout:
            file.write(message)
        else:
            say(message.rstrip("\n"))

    def error(self, message: str) -> NoReturn:
        """Print the line and exit."""
        self.exit(BAD_INPUT, f"{self.prog}: {message} (see `{self.prog} --help`)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `hdlm` with the arguments, by default those of the process; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    known = verbs()
    first = next((word for word in words if not word.startswith("-")), None)
    if first not in known:
        return guarded("hdlm", _help, words)
    traceback = "--traceback" in words[: words.index(first)]
    return guarded(f"hdlm {first}", partial(_run, first), words, traceback=traceback)


def _help(words: Sequence[str]) -> int:
    """Print the help of `hdlm`; an unknown verb is a mistake."""
    parser, _ = _parsers(verbs())
    parser.parse_args(words)
    parser.print_help()
    return 0


def _parsers(known: Mapping[str, Verb]) -> tuple[Parser, dict[str, Parser]]:
    """The parser of `hdlm`, and the parser of each known verb, still without its arguments."""
    parser = Parser(
        prog="hdlm",
        description="Hybrid diffusion language models: train, evaluate and sample from text models\n"
        "between autoregression and diffusion.",
        epilog="`hdlm VERB --help` has the options of a verb, and examples.",
    )
    parser.add_argument("--version", action="version", version=f"hdlm {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    actions = parser.add_subparsers(metavar="VERB", title="verbs", parser_class=Parser)
    return parser, {
        name: actions.add_parser(name, help=verb.summary, description=verb.description)
        for name, verb in known.items()
    }


def _run(name: str, words: Sequence[str]) -> int:
    """Run a verb."""
    verb = verbs()[name]
    parser, parsers = _parsers({name: verb})
    module, subparser = verb.load(), parsers[name]
    module.add_arguments(subparser)
    args = parser.parse_args(words)
    check_outputs(subparser, args)
    return module.run(args)
