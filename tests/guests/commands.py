"""Runs the command, and pytest with our plugin, as a user's shell would: in a process of their own; and the tools that tests need.

Called by test_cli_*, test_plugin, test_image_guests, test_pc_*, test_gdb, c_images, pc_images. The processes import this tree, whether xenlike is installed or not.
"""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Arguments that load the plugin where no entry point does.
PLUGIN = [] if any(e.name == "xenlike" for e in importlib.metadata.entry_points(group="pytest11")) else ["-p", "xenlike.testing.plugin"]
PATIENCE = 120      # seconds of real time after which a test that hangs fails

#: In front of a program: this process finds no C core.
NO_CORE = "import sys; sys.modules['xenlike._core'] = None; "


def environment(*first: Path, **more: str) -> dict[str, str]:
    """The tests' environment, with this tree importable, and the folders ``first`` before it."""
    path = [str(p) for p in (*first, ROOT)] + [p for p in (os.environ.get("PYTHONPATH"),) if p]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **more}


#: What makes this interpreter one with sanitizers (scripts/asan_test.sh): for processes that load our core, not for tools.
SANITIZER = ("LD_PRELOAD", "PYTHONMALLOC", "ASAN_OPTIONS", "UBSAN_OPTIONS")


def tool_environment(**more: str) -> dict[str, str]:
    """The tests' environment for programs that are not ours (make, gcc, gdb, qemu): without what sanitizers need."""
    return {**{name: value for name, value in environment().items() if name not in SANITIZER}, **more}


def python_for_tools() -> str:
    """How a tool, say make, calls this interpreter so that it can load our core: a command line."""
    kept = [f"{name}={os.environ[name]}" for name in SANITIZER if name in os.environ]
    return " ".join(shlex.quote(word) for word in ([*(["env"] if kept else []), *kept, sys.executable]))


def start(*words: object, cwd: Path, env: dict[str, str] | None = None, **options: object) -> "subprocess.Popen[bytes]":
    """Starts ``xenlike WORDS``."""
    return subprocess.Popen([sys.executable, "-m", "xenlike", *map(str, words)], cwd=cwd, env=env or environment(),
                            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})


def xenlike(*words: object, cwd: Path, input: bytes | None = None, **options: object) -> "subprocess.CompletedProcess[bytes]":
    """Runs ``xenlike WORDS`` to its end. Standard input is empty unless ``input`` is given."""
    stdin = {} if input is None else {"stdin": subprocess.PIPE}
    with start(*words, cwd=cwd, **{**stdin, **options}) as process:
        try:
            out, err = process.communicate(input, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def guest(folder: Path, body: str, *, name: str = "g", config: str = "") -> Path:
    """Writes a guest whose ``main`` is ``body``, and its configuration; returns the latter's path."""
    (folder / f"{name}.py").write_text(
        "from guest_sdk import Guest\n\nclass G(Guest):\n    async def main(self):\n"
        + textwrap.indent(textwrap.dedent(body).lstrip("\n"), "        "))
    path = folder / f"{name}.cfg"
    path.write_text(f'name = "{name}"\nkernel = "{name}.py:G"\nmemory = 4\n{config}\n')
    return path
