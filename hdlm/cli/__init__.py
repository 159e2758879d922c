"""The command line: `hdlm <verb>`.

A verb is one file here.  `hdlm/cli/sample.py` is `hdlm sample`, `eval_modeling.py` is `hdlm eval-modeling`; names that
begin with `_` are not verbs.  Dropping the file in is all there is to registering it.  Such a file has:

    \"\"\"One line that `hdlm --help` prints.

    The rest of `hdlm sample --help`, examples above all.
    \"\"\"

    def add_arguments(parser: argparse.ArgumentParser) -> None: ...

    def run(args: argparse.Namespace) -> int: ...      # the exit status

The options of the library are flags by `hdlm.cli._options.Options`: a dataclass or a function has the name, the type,
the choices, the default and the help text of each.  What is not printing or parsing belongs into the library.

It is imported only when its verb is called (`hdlm --help` reads the docstring from the file), and should itself
import torch and the like inside `run`, so that `hdlm sample --help` is as quick.

Errors have one policy, in `hdlm.cli._main`: a `ValueError` or an `OSError` is bad input, of which the user reads
one line and gets exit status 2; a missing extra is named with the command that installs it; anything else is a fault
of ours and keeps its traceback.  Results go to standard output, everything else to standard error; `hdlm.cli._streams`
makes both fit for it.  An option that names a place to write to has a `type` of `hdlm.cli._outputs`, by which the place
is checked before `run` is called.
"""

from hdlm.cli._main import main

__all__ = ["main"]
