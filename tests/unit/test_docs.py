"""The documentation is true: its programs run and print what the pages show, its links lead somewhere, what it names exists.

How pages are read, so that authors know:

    ```python title="guest.py"      a file, written into the page's folder (any language; a later block may replace it)
    ```python fragment              part of a program: only compiled
    ```console                      run by bash, command by command ("$ "), and compared with what is shown
    ```sh, ```c, ...                not run

The blocks of a page run in order, in one folder; `cd` lasts. "..." in what is shown stands for anything. Figures with a decimal
point are not compared, unless the command says `--clock virtual`: there they are the same everywhere.
"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / "README.md").exists():
    pytest.skip("this copy of the tree has no README.md", allow_module_level=True)
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Pages whose programs run; and whose names are looked up. The others are generated, or list commands too slow for a test.
OURS = ["README.md", *(f"docs/{name}.md" for name in (
    "index", "tutorial", "design", "python-guests", "c-sdk", "xenstore", "devices", "determinism", "testing-your-guest", "dependencies",
    "adding-a-hypercall", "adding-a-driver", "adding-a-scheduler", "adding-an-instruction", "engine", "loaders", "debugging"))]
_BLOCK = re.compile(r"^( *)```(\w+)?([^\n]*)\n(.*?)^\1```$", re.M | re.S)
_TITLE = re.compile(r'title="([^"]+)"')
_FIGURE = re.compile(r"\d+\.\d+")


class Block(NamedTuple):
    """One fenced block of a page."""

    language: str
    options: str
    text: str
    line: int

    @property
    def title(self) -> str | None:
        found = _TITLE.search(self.options)
        return found[1] if found else None


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(m[2] or "", m[3], textwrap.dedent(m[4]), text.count("\n", 0, m.start()) + 1) for m in _BLOCK.finditer(text)]


# ---- programs --------------------------------------------------------------------------------------------------------

@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What a reader has: the commands `xenlike` and `python`, and pytest with the plugin, whether or not xenlike is installed."""
    commands = tmp_path / "bin"
    commands.mkdir()
    main = "import sys; del sys.path[0]; from xenlike.cli import main; sys.exit(main())"
    for name, words in (("xenlike", ["-c", main]), ("python", []), ("python3", [])):
        command = commands / name
        command.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, *words])} "$@"\n')
        command.chmod(0o755)
    plugins = {e.name for e in importlib.metadata.entry_points(group="pytest11")}
    dropped = ("PYTEST_", "PYTHONHASHSEED", "XENSTORED_")
    return {name: value for name, value in os.environ.items() if not name.startswith(dropped)} | {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTEST_PLUGINS": "" if "xenlike" in plugins else "xenlike.testing.plugin",
        "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "80", "NO_COLOR": "1", "LC_ALL": "C.UTF-8"}


def run_console(block: Block, folder: Path, environment: dict[str, str]) -> tuple[list[tuple[str, str, str]], Path]:
    """Runs the block's commands in one shell: (command, shown, printed) of each, and the folder that the shell ended in."""
    parts = re.split(r"^\$ ", block.text, flags=re.M)
    assert not parts[0], "output before the first command"
    shown = [part.partition("\n")[::2] for part in parts[1:]]
    script = ["exec 2>&1 </dev/null"]
    for command, _ in shown:
        script += [command, "__status=$?; printf '\\036'; (exit $__status)"]
    script.append("pwd")
    done = subprocess.run(["bash", "-c", "\n".join(script)], cwd=folder, env=environment, capture_output=True, timeout=60)
    *printed, where = done.stdout.decode().split("\036")
    return [(command, text, out) for (command, text), out in zip(shown, printed, strict=True)], Path(where.strip())


def matches(command: str, shown: str, printed: str) -> bool:
    if "--clock virtual" not in command:
        shown, printed = _FIGURE.sub("#.#", shown), _FIGURE.sub("#.#", printed)
    pattern = ".*".join(map(re.escape, shown.strip("\n").split("...")))
    return re.fullmatch(pattern, printed.strip("\n"), re.S) is not None


@pytest.mark.parametrize("page", OURS)
def test_programs_run_and_print_what_is_shown(page: str, tmp_path: Path, environment: dict[str, str]) -> None:
    """A reader who types what the page says would get something else."""
    folder = tmp_path / "page"
    folder.mkdir()
    for block in blocks(page):
        if block.title:
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "console":
            results, folder = run_console(block, folder, environment)
            for command, shown, printed in results:
                assert matches(command, shown, printed), \
                    f"{page}:{block.line}: $ {command}\n--- the page shows\n{shown}\n--- it printed\n{printed}"


@pytest.mark.parametrize("page", OURS)
def test_every_python_block_is_run_or_says_that_it_is_a_fragment(page: str) -> None:
    """A program on the page would be one that nobody has ever run, or that is not Python at all."""
    found = blocks(page)
    for n, block in enumerate(found):
        where = f"{page}:{block.line}"
        if block.language == "python":
            assert block.title or "fragment" in block.options, f"{where}: neither a file nor a fragment"
            compile(block.text, where, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if block.title:
            later = "".join(b.text for b in found[n + 1:])
            name = block.title.removesuffix(".py")
            assert name in later or name.startswith("test_"), f"{where}: nothing on the page uses {block.title}"


# ---- links and names -------------------------------------------------------------------------------------------------

def _anchors(page: Path) -> set[str]:
    """GitHub's names for the headings of a page."""
    prose = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    heads = re.findall(r"^#+ +(.*)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", head).strip().lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """A reader would click into nothing."""
    for target in re.findall(r"\]\(([^)\s]+)\)", _BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target} does not exist"
        assert not anchor or file.suffix != ".md" or anchor in _anchors(file), f"{page.name}: {target} has no such heading"


@cache
def source() -> str:
    """All code of the project, to look names up in."""
    files = [p for folder in ("csrc", "xenlike", "guest_sdk") for p in (ROOT / folder).rglob("*")
             if p.suffix in {".c", ".h", ".def", ".py"} and not p.name.startswith("_core")]
    return "\n".join(p.read_text(encoding="utf-8") for p in files)


@pytest.mark.parametrize("page", OURS)
def test_named_files_and_functions_exist(page: str) -> None:
    """The page would describe code that was moved, renamed or never written."""
    prose = _BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for name in re.findall(r"`((?:csrc|xenlike|guest_sdk|tests|docs|scripts)/[\w./-]+)`", prose):
        assert (ROOT / name).exists(), f"{page}: there is no {name}"
    for name in re.findall(r"`(?:[\w.]+\.)?(\w+)\(\)`", prose):
        assert re.search(rf"\b{name}\b", source()), f"{page}: nothing is called {name}()"


def test_every_page_is_in_the_index() -> None:
    """A page would be there and nobody would find it."""
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "index.md" and f"({page.name}" not in index]
    assert not missing, f"docs/index.md does not link {missing}"
