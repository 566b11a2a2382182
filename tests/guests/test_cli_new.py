"""``xenlike new``, and the command itself: help, version, life without the C core."""

from __future__ import annotations

import subprocess
import sys

import pytest
from commands import NO_CORE, PATIENCE, PLUGIN, environment, xenlike


def python(program: str, cwd, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", program, *words], cwd=cwd, env=environment(), stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=PATIENCE)


def test_a_new_project_runs_and_passes_its_own_test(tmp_path):
    """The first thing that a newcomer does would fail."""
    made = xenlike("new", "web-server", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout.decode().splitlines()[-1] == "next: cd web-server && xenlike run web-server.cfg"
    project = tmp_path / "web-server"
    ran = xenlike("run", "web-server.cfg", cwd=project)
    assert (ran.returncode, ran.stdout) == (0, b"hello from domain 1\nmy name is web-server\n")
    tested = subprocess.run([sys.executable, "-m", "pytest", *PLUGIN], cwd=project, env=environment(), capture_output=True, text=True,
                            timeout=PATIENCE)
    assert tested.returncode == 0 and " 1 passed" in tested.stdout, tested.stdout


def test_its_test_fails_if_the_guest_does(tmp_path):
    """The skeleton's test would pass whatever the guest does."""
    xenlike("new", "web", "--directory", "here", cwd=tmp_path)
    file = tmp_path / "here" / "guest.py"
    file.write_text(file.read_text().replace("return 0", "return 1"))
    tested = subprocess.run([sys.executable, "-m", "pytest", *PLUGIN], cwd=file.parent, env=environment(), capture_output=True, text=True,
                            timeout=PATIENCE)
    assert tested.returncode == 1 and "main() returned 1" in tested.stdout, tested.stdout


@pytest.mark.parametrize("words, text", [
    (["new", "3d"], "cannot be a project's name"), (["new", "x", "--lang", "cobol"], "unknown language 'cobol'"),
    (["new", "x", "--directory", "/proc/nope/x"], "cannot be used"), (["new", "full", "--directory", "."], "is not empty"),
])
def test_new_refuses(tmp_path, words, text):
    """A project would be written over another, or half."""
    (tmp_path / "mine").write_text("")
    done = xenlike(*words, cwd=tmp_path)
    assert done.returncode == 1 and text in done.stderr.decode() and done.stderr.startswith(b"xenlike: ")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_help_and_version(tmp_path):
    """A stranger's first two commands."""
    import xenlike as package

    assert xenlike("--version", cwd=tmp_path).stdout.decode() == f"xenlike {package.__version__}\n"
    for words in (["--help"], ["help"], ["-h"]):
        done = xenlike(*words, cwd=tmp_path)
        assert done.returncode == 0 and b"\n  run " in done.stdout and b"\n  new " in done.stdout
    told = xenlike("run", "--help", cwd=tmp_path)
    assert told.returncode == 0 and b"--timeout SECONDS" in told.stdout and b"exit status" in told.stdout


@pytest.mark.parametrize("words, text", [
    ([], "which command?"), (["fly"], "there is no command 'fly'"), (["--fly"], "unknown option --fly"),
])
def test_no_such_command(tmp_path, words, text):
    """A slip would do something, or say nothing."""
    done = xenlike(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"") and done.stderr.decode().endswith(f"xenlike: {text}\n")


def test_a_prefix_that_only_one_command_has(tmp_path):
    """`xenlike r` would not run."""
    assert xenlike("n", "web", cwd=tmp_path).returncode == 0


def test_without_the_core(tmp_path):
    """Where the C core is not built, help would fail too, and `run` would show a traceback."""
    command = NO_CORE + "from xenlike.cli import main; sys.exit(main(sys.argv[1:]))"
    assert python(command, tmp_path, "--version").returncode == 0
    assert python(command, tmp_path, "new", "web").returncode == 0
    done = python(command, tmp_path / "web", "run", "web.cfg")
    assert done.returncode == 1 and done.stderr.startswith("xenlike: xenlike's C core is not built") and "make build" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_package_names_what_it_has():
    """Names found at first use would not be found, or invented ones would be."""
    import xenlike as package

    for name in package.__all__:
        assert getattr(package, name) is not None and name in dir(package)
    with pytest.raises(AttributeError, match="no attribute 'Hots'"):
        package.Hots
