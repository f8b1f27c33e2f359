"""The ``lazystore`` command: the grammar's frame, dispatch, exit codes and errors in one line each.

What the commands take and do is theirs (``lazystore.commands``). Exit codes: 0 fine, 1 the command
failed or something did not verify, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Sequence

import lazystore
from lazystore.commands import COMMANDS
from lazystore.errors import LazyStoreError

__all__ = ["grammar", "main", "parser"]

#: "-3.." is a range of items; argparse takes a word with a blank in it for no option.
_RANGE = re.compile(r"-\d+\.\.(-?\d+)?")

#: Remedies in messages that are arguments of the library, and the options they are here.
_OPTIONS = {
    "allow_pickle=": "--allow-pickle",
    "encryption=": "--encryption-key FILE --password-env NAME",
    "format=": "--format NAME",
    "memory=": "--memory SIZE",
}


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="lazystore", description="Read datasets larger than memory inside a hard byte budget."
    )
    top.add_argument("--version", action="version", version=f"lazystore {lazystore.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        command = importlib.import_module(f"lazystore.commands.{name}").add(commands)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return top


def grammar(words: Sequence[str]) -> argparse.Namespace:
    """The words of a command line, understood; leaves with exit code 2 where they cannot be."""
    return parser().parse_args([f" {word}" if _RANGE.fullmatch(word) else word for word in words])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = grammar(sys.argv[1:] if argv is None else argv)
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (LazyStoreError, OSError) as error:
        if arguments.debug:
            raise
        print(f"lazystore: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if arguments.debug:
            raise
        print("lazystore: interrupted", file=sys.stderr)
        return 130


def _one_line(error: Exception) -> str:
    """The message; where its remedy is an argument, what that is called here."""
    text = " ".join(str(error).split()) or type(error).__name__
    options = [option for argument, option in _OPTIONS.items() if argument in text and option not in text]
    return f"{text} (here: {', '.join(options)})" if options else text


if __name__ == "__main__":
    sys.exit(main())
