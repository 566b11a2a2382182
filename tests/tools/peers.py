#!/usr/bin/env python3
"""Debian packages that tests use as peers: downloaded and unpacked into a cache folder, never installed.

Tests compare our ABI with the headers of ``libxen-dev``, drive our xenstored with the tools of ``xenstore-utils``, and run
guests for a plain PC under QEMU too; benchmarks measure against QEMU. This module gets them with ``apt-get download`` and ``dpkg-deb -x``, without root. The cache is ``$XENLIKE_PEERS``, or
``~/.cache/xenlike/peers``; each package is one folder in it, complete as soon as it exists.

    peers.path("libxen-dev") / "usr/include/xen/xen.h"
    argv0, env = peers.xenstore_tool("xenstore-ls")
    argv0, env, options = peers.qemu()

Where a peer cannot be had (no apt, no network, another distribution) all raise `PeerUnavailable`, whose text is fit
for ``pytest.skip``. ``python tests/tools/peers.py fetch PACKAGE...`` fills the cache ahead of time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

# Libraries that come with the tools, not with the system: fetched along with the package that needs them.
BUNDLED = re.compile(r"libxen[a-z0-9.]*\Z")

# QEMU for PCs: the program, its translator and options as modules, firmware. Network boot ROMs (ipxe-qemu) are for network
# cards, and no PC here has one.
QEMU = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")

# Seconds. Generous for a slow mirror, but a machine without a network must not hold up a test run for long.
DOWNLOAD_TIMEOUT = 180
APT_OPTIONS = ("-q", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20",
               # The files belong to whoever runs the tests; apt need not become another user to fetch them.
               "-o", "APT::Sandbox::User=root")


class PeerUnavailable(Exception):
    """A peer package that cannot be had here. The text says which package, and why."""

    def __init__(self, package: str, reason: str) -> None:
        super().__init__(f"Debian package {package} is not available: {reason}")
        self.package = package
        self.reason = reason


# One failed download must not cost every later test the same wait.
_failures: dict[str, PeerUnavailable] = {}
_deadline: tuple[float, float] | None = None    # time.monotonic() by which downloads must be over, and the seconds that were given; see patience


def cache() -> Path:
    """The folder that holds the unpacked packages. It need not exist yet."""
    chosen = os.environ.get("XENLIKE_PEERS")
    return Path(chosen) if chosen else Path.home() / ".cache" / "xenlike" / "peers"


def path(package: str) -> Path:
    """The root of the unpacked `package`, fetched if it is not in the cache. Raises `PeerUnavailable`."""
    return paths([package])[0]


def paths(packages: Iterable[str]) -> list[Path]:
    """The roots of `packages`; those that are not in the cache are fetched by one download. Raises `PeerUnavailable`."""
    names = list(packages)

    def absent() -> list[str]:
        return [name for name in names if not (cache() / name).is_dir()]
    wanted = absent()
    for name in wanted:
        if name in _failures:
            raise _failures[name]
    try:
        if wanted:
            with _locked(", ".join(wanted)):
                wanted = absent()  # another process may have been quicker
                if wanted:
                    _fetch(wanted)
    except PeerUnavailable as error:
        _failures.update(dict.fromkeys(wanted, error))
        raise
    return [cache() / name for name in names]


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Within, all downloads together may take so long; then `PeerUnavailable`. What arrived before stays in the cache."""
    global _deadline
    _deadline = time.monotonic() + seconds, seconds
    try:
        yield
    finally:
        _deadline = None


def with_libraries(package: str) -> list[Path]:
    """The roots of `package` and of the libraries of its own source that it depends on, itself first."""
    roots: list[Path] = []
    wanted = [package]
    seen = set(wanted)
    while wanted:
        roots.append(path(wanted.pop(0)))
        needed = [name for name in _dependencies(roots[-1]) if BUNDLED.match(name) and name not in seen]
        wanted += needed
        seen.update(needed)
    return roots


def version(package: str) -> str:
    """Debian's version of `package`, fetched if need be: ``4.17.5+72-g01140da4e8-1``."""
    return _control(path(package), "Version")


def xenstore_tool(name: str) -> tuple[str, dict[str, str]]:
    """The path of a tool of xenstore-utils, say ``xenstore-ls``, and the environment that it needs.

    The environment is a copy of ours with ``LD_LIBRARY_PATH`` set; the caller adds ``XENSTORED_PATH``, the socket.
    Raises `PeerUnavailable`, also when a library of the tool is missing here.
    """
    roots = with_libraries("xenstore-utils")
    tool = roots[0] / "usr" / "bin" / name
    if not tool.is_file():
        raise PeerUnavailable("xenstore-utils", f"it has no tool {name}")
    environment = _library_path(roots[1:])
    missing = _missing_libraries(tool, environment)
    if missing:
        raise PeerUnavailable("xenstore-utils", f"{name} needs {', '.join(missing)}, which this system has not")
    return str(tool), environment


def qemu() -> tuple[str, dict[str, str], list[str]]:
    """qemu-system-x86_64: its path, the environment that it needs, and the options to put first. The one that is installed;
    or Debian's, with those of its libraries that this system has not. Raises `PeerUnavailable`."""
    installed = shutil.which("qemu-system-x86_64")
    if installed:
        return installed, dict(os.environ), []
    roots = _qemu_roots()
    environment = _library_path(roots)
    modules = {str(found.parent) for root in roots for found in root.glob("usr/lib/*/qemu/accel-tcg-x86_64.so")}
    if modules:
        environment["QEMU_MODULE_DIR"] = ":".join(modules)
    data = [root / part for root in roots for part in ("usr/share/qemu", "usr/share/seabios")]
    return str(roots[0] / "usr/bin/qemu-system-x86_64"), environment, [word for folder in data if folder.is_dir() for word in ("-L", str(folder))]


def qemu_pc(kernel: Path, *, vcpus: int = 1, memory: int = 64, cmdline: str = "") -> tuple[list[str], dict[str, str]]:
    """The command, and its environment, that runs the image `kernel` on QEMU's translator as a PC like ours, with `memory` MiB: serial port on
    stdout, debug exit at 0xf4. Raises `PeerUnavailable`."""
    program, environment, options = qemu()
    return [program, *options, "-accel", "tcg", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot", "-device",
            "isa-debug-exit,iobase=0xf4,iosize=4", "-m", str(memory), "-smp", str(vcpus), "-kernel", str(kernel), "-append", cmdline], environment


def _qemu_roots() -> list[Path]:
    """The packages QEMU, and of those that they depend on the ones that have libraries which are missing here."""
    names = list(QEMU)
    while True:
        roots = paths(names)
        environment = _library_path(roots)
        programs = [found for root in roots[:2] for part in ("usr/bin/qemu-system-x86_64", "usr/lib/*/qemu/accel-tcg-x86_64.so")
                    for found in root.glob(part)]
        missing = sorted({name for program in programs for name in _missing_libraries(program, environment)})
        if not missing:
            return roots
        offered = {name for root in roots for name in _dependencies(root)}
        owners = {owner for library in missing for owner in [_owner(library, offered)] if owner} - set(names)
        if not owners:
            raise PeerUnavailable(QEMU[0], f"it needs {', '.join(missing)}, which this system has not")
        names += sorted(owners)


def _owner(library: str, packages: Iterable[str]) -> str | None:
    """Which of `packages` has `library`, by Debian's rule for naming packages after sonames: libfoo.so.1 is in libfoo1, libfoo1t64, libfoo-1 or
    libfoo1-something."""
    plain = library.replace(".so.", "").replace("-", "").replace("_", "").lower()
    return min((name for name in packages if name.replace("-", "").startswith(plain)), key=len, default=None)


def fetch(*packages: str) -> list[Path]:
    """The roots of `packages`, each with the libraries that its programs need; headers need none."""
    return [root for package in packages
            for root in (_qemu_roots() if package == QEMU[0] else [path(package)] if package.endswith("-dev") else with_libraries(package))]


# ---- Fetching --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(package: str) -> Iterator[None]:
    """Holds the cache for this process; a process that dies gives it up."""
    try:
        cache().mkdir(parents=True, exist_ok=True)
        lock = open(cache() / ".lock", "w", encoding="ascii")
    except OSError as error:
        raise PeerUnavailable(package, f"cannot write to {cache()}: {error.strerror}; set XENLIKE_PEERS to a folder "
                                       "that can be written to") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(packages: list[str]) -> None:
    """Downloads and unpacks `packages` beside their places, then renames: a half-unpacked tree never has the final name."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise PeerUnavailable(", ".join(packages), f"there is no {program} here; on Debian it would be downloaded")
    with tempfile.TemporaryDirectory(prefix=".new-", dir=cache()) as name:
        work = Path(name)
        for package, archive in _download(packages, work).items():
            tree = work / package
            _run(package, ["dpkg-deb", "-x", str(archive), str(tree)])
            _run(package, ["dpkg-deb", "-e", str(archive), str(tree / "DEBIAN")])
            os.rename(tree, cache() / package)


def _download(packages: list[str], work: Path) -> dict[str, Path]:
    """Downloads into `work`: with the system's package lists, or, if they are empty or stale, with lists of our own. Returns the archives."""
    named = ", ".join(packages)

    def attempt(*options: str) -> None:
        _run(named, ["apt-get", *APT_OPTIONS, *options, "download", *packages], cwd=work)

    try:
        attempt()
    except PeerUnavailable:
        private = _private_lists()
        try:
            attempt(*private)
        except PeerUnavailable:
            offline = None
            try:
                _run(named, ["apt-get", *APT_OPTIONS, *private, "update"])
            except PeerUnavailable as error:
                offline = error  # of some source, perhaps not of the one that has the package
            try:
                attempt(*private)
            except PeerUnavailable as error:
                raise offline or error from None
    archives = {package: found for package in packages for found in work.glob(f"{package}_*.deb")}
    if len(archives) != len(packages):
        raise PeerUnavailable(named, "apt-get download left no archive")
    return archives


def _private_lists() -> list[str]:
    """Options that make apt keep lists, archives and locks in the cache folder, which needs no root. Sources and keys
    stay the system's, and so does dpkg's status, which apt only reads."""
    state = cache() / ".apt"
    lists, archives = state / "lists", state / "archives"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    config = state / "apt.conf"
    # Only a file can clear: the system's hooks after an update are for the system's lists, and may need root.
    config.write_text(f"""\
Dir::State "{state}";
Dir::State::lists "{lists}";
Dir::State::status "/var/lib/dpkg/status";
Dir::Cache "{state}";
Dir::Cache::archives "{archives}";
Acquire::Languages "none";
APT::Update::Error-Mode "any";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
""", encoding="utf-8")
    return ["-c", str(config)]


def _run(package: str, argv: list[str], *, cwd: Path | None = None) -> str:
    """Runs `argv`; a failure is `PeerUnavailable` with the first line that names an error."""
    limit, told = float(DOWNLOAD_TIMEOUT), f"{argv[0]} took more than {DOWNLOAD_TIMEOUT} s"
    if _deadline is not None and _deadline[0] - time.monotonic() < limit:
        limit = max(_deadline[0] - time.monotonic(), 0)
        told = f"downloads took more than {_deadline[1]:g} s" if _deadline[1] else f"it is not in {cache()}"
        told += "; tests/tools/peers.py fetch has more patience"
    try:
        done = subprocess.run(argv, cwd=cwd, env=dict(os.environ, LC_ALL="C"), stdin=subprocess.DEVNULL,
                              timeout=limit, capture_output=True, text=True, errors="replace", check=False)
    except subprocess.TimeoutExpired:
        raise PeerUnavailable(package, told) from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        told = next((line for line in lines if line.startswith("E:")), lines[-1])
        raise PeerUnavailable(package, f"{argv[0]}: {told.removeprefix(f'{argv[0]}:').removeprefix('E:').strip()}")
    return done.stdout


# ---- What a package needs --------------------------------------------------------------------------------------------


def _control(root: Path, field: str) -> str:
    """A field of the control file of an unpacked package; empty if it has none."""
    control = (root / "DEBIAN" / "control").read_text(encoding="utf-8")
    found = re.search(rf"^{field}:(.*(?:\n .*)*)", control, re.MULTILINE)
    return found[1].strip() if found else ""


def _dependencies(root: Path) -> list[str]:
    """Names in the Depends field of an unpacked package; of alternatives the first."""
    items = [item.strip() for item in _control(root, "Depends").split(",")]
    return [re.split(r"[\s(|:]", item, maxsplit=1)[0] for item in items if item]


def _library_path(roots: Iterable[Path]) -> dict[str, str]:
    """A copy of our environment in which programs find the libraries under `roots` first."""
    folders = sorted({str(library.parent) for root in roots for library in root.glob("**/lib/*/*.so.*")})
    inherited = os.environ.get("LD_LIBRARY_PATH")
    found = ":".join(folders + ([inherited] if inherited else []))
    return dict(os.environ, LD_LIBRARY_PATH=found) if found else dict(os.environ)


def _missing_libraries(program: Path, environment: dict[str, str]) -> list[str]:
    listed = subprocess.run(["ldd", str(program)], env=environment, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        return [f"another system ({listed.stderr.strip() or 'it is not a program'})"]
    return re.findall(r"^\s*(\S+) => not found", listed.stdout, re.MULTILINE)


def main(arguments: list[str]) -> int:
    """The command line: ``fetch PACKAGE...``. Exits 1 if a package cannot be had."""
    if len(arguments) < 2 or arguments[0] != "fetch":
        print("usage: peers.py fetch PACKAGE...", file=sys.stderr)
        return 2
    try:
        for root in fetch(*arguments[1:]):
            print(root)
    except PeerUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
