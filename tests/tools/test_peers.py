"""The cache of peer packages: fetched once, complete or absent, and a clear reason where a package cannot be had.

If these failed, a test run without a network would hang or error instead of skipping, two test runs at once would
unpack into each other, or a machine without root would not get its peers. apt-get and dpkg-deb are stand-ins here:
scripts that serve packages from a folder. That the real ones do is shown by the tests that use peers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import peers  # noqa: E402

# Serves $REPOSITORY/<package>.deb, if the lists are there: the system's ($REPOSITORY/lists), or those that an `update`
# with a configuration file of our own has made. Logs each use.
APT_GET = """#!/bin/sh
echo "$*" >> "$REPOSITORY/log"
while [ $# -gt 0 ]; do
    case "$1" in
    -c) config=$2; shift 2;;
    -o) shift 2;;
    -*) shift;;
    *) break;;
    esac
done
lists=$REPOSITORY/lists
[ -z "$config" ] || lists=$(sed -n 's/^Dir::State::lists "\\(.*\\)";/\\1/p' "$config")
case "$1" in
update)
    [ -e "$REPOSITORY/offline" ] && { echo "E: Failed to fetch the list" >&2; exit 100; }
    touch "$lists/fresh";;
download)
    sleep "${SLOW:-0}"
    shift
    for name in "$@"; do
        [ -e "$lists/fresh" ] && [ -e "$REPOSITORY/$name.deb" ] || { echo "E: Unable to locate package $name" >&2; exit 100; }
        cp "$REPOSITORY/$name.deb" "${name}_1_amd64.deb"
    done;;
esac
"""

# A package is a tar of two folders.
DPKG_DEB = """#!/bin/sh
mkdir -p "$3"
case "$1" in
-x) [ -e "$REPOSITORY/broken" ] && { touch "$3/half"; echo "dpkg-deb: error: broken" >&2; exit 2; }
    tar -xf "$2" -C "$3" --strip-components=1 data;;
-e) tar -xf "$2" -C "$3" --strip-components=1 control;;
esac
"""


class Repository:
    """The stand-ins and what they serve."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        for name, script in (("apt-get", APT_GET), ("dpkg-deb", DPKG_DEB)):
            (folder / "bin" / name).write_text(script)
            (folder / "bin" / name).chmod(0o755)
        (folder / "lists").mkdir()
        (folder / "lists" / "fresh").touch()

    def add(self, name: str, files: dict[str, str], depends: str = "") -> None:
        root = self.folder / "build" / name
        for file, text in files.items():
            (root / "data" / file).parent.mkdir(parents=True, exist_ok=True)
            (root / "data" / file).write_text(text)
        (root / "control").mkdir()
        (root / "control" / "control").write_text(
            f"Package: {name}\nVersion: 1.2.3-4\nDepends: {depends}\nSection: x\n")
        subprocess.run(["tar", "-C", str(root), "-cf", str(self.folder / f"{name}.deb"), "data", "control"], check=True)

    def log(self) -> list[str]:
        log = self.folder / "log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    made = Repository(tmp_path / "repository")
    monkeypatch.setenv("REPOSITORY", str(made.folder))
    monkeypatch.setenv("XENLIKE_PEERS", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{made.folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(peers, "_failures", {})
    return made


def test_a_package_is_fetched_once(repository: Repository) -> None:
    repository.add("libxen-dev", {"usr/include/xen/xen.h": "text"})
    for _ in range(3):
        assert (peers.path("libxen-dev") / "usr/include/xen/xen.h").read_text() == "text"
    assert len(repository.log()) == 1
    assert peers.version("libxen-dev") == "1.2.3-4"


def test_libraries_of_the_same_source_come_along(repository: Repository) -> None:
    """A tool needs its libraries, and theirs; the C library is the system's. Headers need none."""
    repository.add("xenstore-utils", {"usr/bin/x": ""}, "libc6 (>= 2.34), libxenstore4 (>= 4.16.0) | other")
    repository.add("libxenstore4", {"usr/lib/a/libxenstore.so.4": ""}, "libc6,\n libxentoolcore1 (= 1)")
    repository.add("libxentoolcore1", {"usr/lib/a/libxentoolcore.so.1": ""})
    repository.add("libxen-dev", {"usr/include/xen/xen.h": ""}, "libxenmisc4.17")
    names = [root.name for root in peers.fetch("xenstore-utils", "libxen-dev")]
    assert names == ["xenstore-utils", "libxenstore4", "libxentoolcore1", "libxen-dev"]


@pytest.fixture
def tool(repository: Repository) -> None:
    repository.add("xenstore-utils", {"usr/bin/script": "#!/bin/sh\n"}, "libxenstore4")
    repository.add("libxenstore4", {"usr/lib/a/libxenstore.so.4": ""})


def test_a_tool_that_cannot_run_here_is_unavailable(repository: Repository, tool: None) -> None:
    """Not found, or not a program of this system: the test that wanted it skips, it does not fail."""
    with pytest.raises(peers.PeerUnavailable, match="it has no tool xenstore-ls"):
        peers.xenstore_tool("xenstore-ls")
    with pytest.raises(peers.PeerUnavailable, match="script needs another system"):
        peers.xenstore_tool("script")


def test_a_tool_finds_its_libraries(repository: Repository, tool: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_missing_libraries", lambda program, environment: [])
    monkeypatch.setenv("LD_LIBRARY_PATH", "/mine")
    program, environment = peers.xenstore_tool("script")
    assert Path(program).read_text() == "#!/bin/sh\n"
    assert environment["LD_LIBRARY_PATH"] == f"{peers.cache() / 'libxenstore4/usr/lib/a'}:/mine"
    assert environment["PATH"] == os.environ["PATH"]


def test_lists_of_our_own_where_the_system_has_none(repository: Repository) -> None:
    """A fresh container has empty lists, and without root they cannot be updated: apt gets a place of its own."""
    (repository.folder / "lists" / "fresh").unlink()
    repository.add("libxen-dev", {"a": ""})
    repository.add("xenstore-utils", {"a": ""})
    assert peers.path("libxen-dev").is_dir() and peers.path("xenstore-utils").is_dir()
    used = [line.split()[-1] if line.split()[-1] == "update" else "download" for line in repository.log()]
    # The second package finds the lists that the first one needed.
    assert used == ["download", "download", "update", "download", "download", "download"]


@pytest.fixture
def emulator(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """QEMU's packages and no installed one. Libraries are missing until their packages have come: one of the program's, then one of that one's."""
    repository.add("qemu-system-x86", {"usr/bin/qemu-system-x86_64": ""}, "libc6, libfdt1 (>= 1.6), libglib2.0-0, zlib1g")
    repository.add("qemu-system-common", {"usr/lib/a/qemu/accel-tcg-x86_64.so": ""}, "libfdt1")
    repository.add("qemu-system-data", {"usr/share/qemu/pvh.bin": ""})
    repository.add("seabios", {"usr/share/seabios/bios.bin": ""})
    repository.add("libfdt1", {"usr/lib/a/libfdt.so.1": ""}, "libnl-3-200")
    repository.add("libnl-3-200", {"usr/lib/a/libnl-3.so.200": ""})

    def missing(program: Path, environment: dict[str, str]) -> list[str]:
        folders = environment.get("LD_LIBRARY_PATH", "").split(":")
        have = {path.name for folder in folders if folder for path in Path(folder).glob("*")}
        return [name for name in (["libnl-3.so.200"] if "libfdt.so.1" in have else ["libfdt.so.1"]) if name not in have]
    monkeypatch.setattr(peers, "_missing_libraries", missing)
    monkeypatch.setenv("PATH", ":".join(f for f in os.environ["PATH"].split(":") if not Path(f, "qemu-system-x86_64").exists()))
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    return repository


def test_an_emulator_comes_with_what_is_missing(emulator: Repository) -> None:
    """Else QEMU would not start where its libraries are not installed, or all that it depends on would be downloaded."""
    program, environment, options = peers.qemu()
    there = peers.cache()
    assert program == str(there / "qemu-system-x86/usr/bin/qemu-system-x86_64")
    assert environment["LD_LIBRARY_PATH"].split(":") == [str(there / "libfdt1/usr/lib/a"), str(there / "libnl-3-200/usr/lib/a")]
    assert environment["QEMU_MODULE_DIR"] == str(there / "qemu-system-common/usr/lib/a/qemu")
    assert options == ["-L", str(there / "qemu-system-data/usr/share/qemu"), "-L", str(there / "seabios/usr/share/seabios")]
    assert [line.split(" download ")[1] for line in emulator.log()] == [" ".join(peers.QEMU), "libfdt1", "libnl-3-200"]
    assert peers.fetch("qemu-system-x86")[-1] == there / "libnl-3-200" and len(emulator.log()) == 3


def test_an_installed_emulator_is_preferred(emulator: Repository) -> None:
    """A host's own is the one that its user knows; nothing is downloaded then."""
    (emulator.folder / "bin" / "qemu-system-x86_64").write_text("#!/bin/sh\n")
    (emulator.folder / "bin" / "qemu-system-x86_64").chmod(0o755)
    assert peers.qemu()[0] == str(emulator.folder / "bin" / "qemu-system-x86_64") and not emulator.log()


def test_an_emulator_whose_library_nobody_has(emulator: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the loop over libraries would not end."""
    monkeypatch.setattr(peers, "_missing_libraries", lambda program, environment: ["libodd.so.1"])
    assert reason(peers.qemu).endswith("it needs libodd.so.1, which this system has not")


@pytest.mark.parametrize("library, package", [
    ("libfdt.so.1", "libfdt1"), ("libfuse3.so.3", "libfuse3-3"), ("libnl-route-3.so.200", "libnl-route-3-200"), ("libglib-2.0.so.0", "libglib2.0-0"),
    ("libaio.so.1", "libaio1t64"), ("libjpeg.so.62", "libjpeg62-turbo"), ("libodd.so.1", None)])
def test_the_package_of_a_library(library: str, package: str | None) -> None:
    """Else a library that Debian has is said to be missing."""
    offered = {"libfdt1", "libfuse3-3", "libnl-3-200", "libnl-route-3-200", "libglib2.0-0", "libaio1t64", "libjpeg62-turbo"}
    assert peers._owner(library, offered) == package


def test_patience_ends(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow network would hold up a test run, and the reason would not say what to do."""
    monkeypatch.setenv("SLOW", "5")
    repository.add("libxen-dev", {"a": ""})
    with peers.patience(0.2):
        assert "downloads took more than 0.2 s; tests/tools/peers.py fetch has more patience" in reason(lambda: peers.path("libxen-dev"))
    monkeypatch.setenv("SLOW", "0")
    peers._failures.clear()
    assert peers.path("libxen-dev").is_dir()


def reason(action: Callable[[], object]) -> str:
    with pytest.raises(peers.PeerUnavailable) as caught:
        action()
    return str(caught.value)


def test_no_network(repository: Repository) -> None:
    """The reason is apt's own, and later tests do not wait for the same failure again."""
    (repository.folder / "lists" / "fresh").unlink()
    (repository.folder / "offline").touch()
    told = reason(lambda: peers.path("libxen-dev"))
    assert told == "Debian package libxen-dev is not available: apt-get: Failed to fetch the list"
    tries = len(repository.log())
    assert reason(lambda: peers.path("libxen-dev")) == told
    assert len(repository.log()) == tries


def test_no_such_package(repository: Repository) -> None:
    assert "apt-get: Unable to locate package nonesuch" in reason(lambda: peers.path("nonesuch"))


def test_no_apt(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository.folder / "lists"))
    assert "there is no apt-get here" in reason(lambda: peers.path("libxen-dev"))


def test_a_cache_that_cannot_be_made(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XENLIKE_PEERS", str(tmp_path / "file" / "cache"))
    assert "set XENLIKE_PEERS to a folder that can be written to" in reason(lambda: peers.path("libxen-dev"))


def test_a_package_is_complete_or_absent(repository: Repository) -> None:
    """What fails half-way leaves nothing that the next run would take for the package."""
    repository.add("libxen-dev", {"a": "whole"})
    (repository.folder / "broken").touch()
    assert "dpkg-deb: error: broken" in reason(lambda: peers.path("libxen-dev"))
    assert [path.name for path in peers.cache().iterdir() if not path.name == ".lock"] == []
    (repository.folder / "broken").unlink()
    peers._failures.clear()
    assert (peers.path("libxen-dev") / "a").read_text() == "whole"


def test_two_processes_at_once(repository: Repository) -> None:
    """The second waits for the first, and finds the package there."""
    repository.add("libxen-dev", {"a": "whole"})
    command = [sys.executable, str(HERE / "peers.py"), "fetch", "libxen-dev"]
    both = [subprocess.Popen(command, env=dict(os.environ, SLOW="0.3"), stdout=subprocess.PIPE, text=True)
            for _ in range(2)]
    assert [process.communicate()[0] for process in both] == [f"{peers.cache() / 'libxen-dev'}\n"] * 2
    assert [process.returncode for process in both] == [0, 0]
    assert len(repository.log()) == 1


def test_the_command_line(repository: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    repository.add("libxen-dev", {"a": ""})
    assert peers.main(["fetch", "libxen-dev"]) == 0
    assert capsys.readouterr().out == f"{peers.cache() / 'libxen-dev'}\n"
    assert peers.main(["fetch", "nonesuch"]) == 1
    assert "nonesuch" in capsys.readouterr().err
    assert peers.main([]) == peers.main(["fetch"]) == peers.main(["get", "x"]) == 2
