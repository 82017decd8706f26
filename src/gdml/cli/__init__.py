"""The command line: ``gdml predict``, ``gdml embed``, ``gdml doctor``.

Each command calls what Python code would call. What they need is imported when they run, so that ``--help`` is quick.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence

from gdml import __version__

from . import _embed, _predict, doctor

__all__ = ["main"]

# what the library raises for what the user can mend; anything else is a bug, and shows its traceback
_EXPECTED = (ValueError, TypeError, LookupError, OSError, RuntimeError, ImportError, MemoryError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments
        Words of the command line, without the name of the program; by default those of this process.

    Returns
    -------
    Exit status: 0, all was done; 1, some slides failed, or a check of ``gdml doctor`` did; 2, the call failed as a
    whole, as for an argument that is not valid; 130, it was interrupted.
    """
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return options.command(options)
    except KeyboardInterrupt:
        print("gdml: interrupted; the same command does what is left", file=sys.stderr)
        return 130
    except _EXPECTED as error:
        if getattr(options, "traceback", False):
            raise
        print(f"gdml: error: {_message(error)}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gdml",
        description="Spatial gene expression from H&E histology.",
        epilog="Exit status: 0, all done; 1, some slides or checks failed; 2, nothing could be done.",
    )
    parser.add_argument("--version", action="version", version=f"gdml {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (_predict, _embed, doctor):
        module.add_command(commands)
    return parser


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    print(f"gdml: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _message(error: BaseException) -> str:
    # a KeyError's own text is the repr of its message
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join([text or type(error).__name__, *getattr(error, "__notes__", [])])
