"""The ``xenlike`` command: the table of its commands, and what all of them share.

Owns ``COMMANDS`` (a command is a row and a function), the way errors are shown, and exit statuses: 0 done, 1 failed, 2 usage;
what a command adds to these it says in its help. Called by the console script and ``python -m xenlike``. Commands import
what they need when they run: help, ``--version`` and ``new`` work without the C core.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import xenlike
from xenlike.toolstack.errors import ToolstackError

__all__ = ["COMMANDS", "Command", "Failure", "main"]

FAILED, USAGE = 1, 2
INTERRUPTED = 130       # 128 + SIGINT, as shells have it


class Failure(Exception):
    """A command cannot go on; the text is for the user."""


@dataclass(frozen=True)
class Command:
    """One row: ``arguments`` declares the command's own arguments, ``run`` does it and returns the exit status."""

    name: str
    summary: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    epilog: str = ""

    def parser(self) -> argparse.ArgumentParser:
        """Its command line."""
        parser = argparse.ArgumentParser(prog=f"xenlike {self.name}", description=self.summary, epilog=self.epilog,
                                         formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
        self.arguments(parser)
        parser.set_defaults(usage_error=parser.error)       # for what a command finds wrong with its arguments itself
        return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line ``argv`` (default: the process's) and returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        command = _find(words)
        return command.run(command.parser().parse_intermixed_args(words[1:]))
    except SystemExit as end:           # argparse: help 0, usage 2
        return end.code if isinstance(end.code, int) else USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:             # whoever read our output has gone: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except (ToolstackError, Failure, OSError, ImportError) as error:
        named = isinstance(error, OSError) and error.filename is not None
        print(f"xenlike: {f'{error.filename}: {error.strerror}' if named else error}", file=sys.stderr)
        return FAILED


def _find(words: list[str]) -> Command:
    """The command that the first word names, in full or by a prefix that only one has."""
    word = words[0] if words else ""
    if word in ("-V", "--version"):
        print(f"xenlike {xenlike.__version__}")
        raise SystemExit(0)
    if word in ("-h", "--help", "help"):
        print(_help())
        raise SystemExit(0)
    if not word or word.startswith("-"):
        _usage_error(f"unknown option {word}" if word else "which command?")
    found = [c for c in COMMANDS if c.name == word] or [c for c in COMMANDS if c.name.startswith(word)]
    if len(found) != 1:
        _usage_error(f"'{word}' could be {' or '.join(c.name for c in found)}" if found else f"there is no command '{word}'")
    return found[0]


def _usage_error(message: str) -> NoReturn:
    print(f"{_help()}\n\nxenlike: {message}", file=sys.stderr)
    raise SystemExit(USAGE)


def _help() -> str:
    rows = "\n".join(f"  {c.name:<10}{c.summary}" for c in COMMANDS)
    return (f"usage: xenlike COMMAND [ARGUMENTS]\n       xenlike --version\n\n{rows}\n\n"
            "`xenlike COMMAND --help` tells more of each.")


# ---- the commands ----------------------------------------------------------------------------------------------------

def _run_arguments(parser: argparse.ArgumentParser) -> None:
    from xenlike.cli_run import arguments

    arguments(parser)


def _run(args: argparse.Namespace) -> int:
    from xenlike.cli_run import run

    return run(args)


def _new_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the domain's name; its guest's class is made from it")
    parser.add_argument("--lang", default="python", help="language of the guest: python (default) or c")
    parser.add_argument("--directory", metavar="DIR", help="where to write it (default: ./NAME); must be empty or not there")


def _new(args: argparse.Namespace) -> int:
    from xenlike.toolstack.new import LANGUAGES, create_skeleton

    files = create_skeleton(args.name, args.directory, args.lang)
    for path in files:
        print(f"wrote {path}")
    folder = files[0].parent
    steps = [f"cd {shlex.quote(str(folder))}", LANGUAGES[args.lang].build, f"xenlike run {args.name}.cfg"]
    print(f"next: {' && '.join(filter(None, steps))}")
    return 0


def _bt_arguments(parser: argparse.ArgumentParser) -> None:
    from xenlike.cli_bt import arguments

    arguments(parser)


def _bt(args: argparse.Namespace) -> int:
    from xenlike.cli_bt import run

    return run(args)


_RUN_EPILOG = """\
One domain: its console is stdout, byte for byte, and stdin its input; the end of stdin only ends the input. Several: each
line is preceded by the domain's name, and nothing is read from stdin. Ctrl-C destroys the domains; a second one does not
wait for a guest that never awaits.

exit status: 0 every domain powered off, 3 one crashed, 4 the time was over (or, with the virtual clock, nothing could ever
happen any more), 130 Ctrl-C, 1 another error, 2 usage. A guest on a plain PC that ends by the debug-exit port 0xf4 chooses it,
as under QEMU: (value << 1 | 1) & 255, so 1 says that all is well. Of several domains the first that is not 0 counts; a crash
counts more."""

#: What ``xenlike`` can do.
COMMANDS = (
    Command("run", "Run domains until they end, on a host of their own.", _run_arguments, _run, _RUN_EPILOG),
    Command("bt", "Show a guest's code and its translation, side by side.", _bt_arguments, _bt),
    Command("new", "Write the start of a new guest: guest, configuration, test.", _new_arguments, _new),
)
