"""The command line: `hdlm <verb>`.

A verb is one file in this folder. `hdlm/cli/sample.py` is `hdlm sample`, `eval_modeling.py` is `hdlm eval-modeling`;
files whose names begin with `_` are not verbs. A new file needs no registration. Such a file has:

    \"\"\"One line that `hdlm --help` prints.

    The rest of `hdlm sample --help`, examples above all.
    \"\"\"

    def add_arguments(parser: argparse.ArgumentParser) -> None: ...

    def run(args: argparse.Namespace) -> int: ...      # the exit status

`hdlm.cli._options.Options` makes flags of the options of the library: a dataclass or a function supplies the name, the
type, the choices, the default and the help text of each flag. Everything except printing and parsing belongs in the
library.

The file is imported only when its verb is called (`hdlm --help` reads the docstring from the source). It should import
slow packages such as torch inside `run`, so that `hdlm sample --help` is fast.

`hdlm.cli._main` handles all errors. A `ValueError` or an `OSError` is bad input: the user gets one line and exit
status 2. A missing extra is reported with the command that installs it. Any other error is a fault of hdlm and keeps
its traceback. Results go to standard output, everything else to standard error; `hdlm.cli._streams` prepares both. An
option for an output path has a `type` of `hdlm.cli._outputs`, which checks the path before `run` is called.
"""

from hdlm.cli._main import main

__all__ = ["main"]
