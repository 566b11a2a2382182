"""From the text of a setting to a typed value: one small parser a kind of value.

Owns the ``Kind``s out of which the table in ``config`` is made, and the types of the values that have no module of
their own. Called by ``config`` only. Nothing here knows a key's name; errors are ``SpecError``, to which the caller
adds file, line and key.
"""

from __future__ import annotations

import inspect
import keyword
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from . import cpus, disk, sizes, spec, vif
from .errors import Location, SpecError, show
from .xlcfg import ListValue, Scalar, Value


@dataclass(frozen=True)
class Context:
    """What a value's meaning depends on: the config file's ``directory``, whether files must exist, who is warned."""

    directory: str
    check_files: bool
    warn: Callable[[Location, str], None]


@dataclass(frozen=True)
class Kind:
    """A kind of value: ``parse(value, context)`` and how the documentation writes it."""

    shape: str
    parse: Callable[[Value, Context], Any]


def scalar(shape: str, read: Callable[[str, Context], Any]) -> Kind:
    """The kind of value that is one string or number, read by ``read(text, context)``."""
    def parse(value: Value, context: Context) -> Any:
        if isinstance(value, ListValue):
            raise SpecError("is a list but should be a single value", hint=f"expected: {shape}")
        return read(value.text, context)
    return Kind(shape, parse)


def list_of(shape: str, example: str, read: Callable[[str, Context, Location], Any]) -> Kind:
    """A list of strings, each read by ``read(text, context, where)``."""
    def parse(value: Value, context: Context) -> tuple:
        if isinstance(value, Scalar):
            raise SpecError("is a single value but should be a list", hint=f"write [ {example} ]")
        items = []
        for item in value.items:
            try:
                if isinstance(item, ListValue):
                    raise SpecError("contains a list but should contain strings", hint=f"write [ {example} ]")
                items.append(read(item.text, context, item.where))
            except SpecError as error:
                error.where = error.where or item.where     # a list may run over many lines: name the item's
                raise
        return tuple(items)
    return Kind(shape, parse)


# --- numbers and words ----------------------------------------------------------------------------------------------

def integer(low: int, high: int) -> Kind:
    """A number within bounds."""
    def read(text: str, context: Context) -> int:
        number = sizes.parse_integer(text)
        if not low <= number <= high:
            raise SpecError(f"{number} is out of range", hint=f"{low} to {high}")
        return number
    return scalar(f"number, {low}–{high}", read)


BOOLEAN = scalar("0 or 1", lambda text, context: sizes.parse_integer(text) != 0)
STRING = scalar("string", lambda text, context: text)


def words(*choices: str) -> Kind:
    """One of a few words."""
    return scalar(" \\| ".join(choices), lambda text, context: spec.one_of(text, choices, "value"))


MIN_MEMORY, MAX_MEMORY = sizes.MIB, 16 * sizes.TIB


def _read_memory(text: str, context: Context) -> int:
    size = sizes.parse_size(text)
    if not MIN_MEMORY <= size <= MAX_MEMORY:
        raise SpecError(f"{show(text)} is out of range", hint="a domain has 1M to 16T; a number without unit is MiB")
    return size


MEMORY = scalar('number of MiB, or a string with a unit: "16M", "1G"', _read_memory)

TSC_MODES = ("default", "always_emulate", "native")


def _parse_tsc_mode(value: Value, context: Context) -> str:
    text = STRING.parse(value, context)
    if text[:1].isdigit() and (number := sizes.parse_integer(text)) < len(TSC_MODES):
        context.warn(value.where, f'numbers are deprecated; write "{TSC_MODES[number]}"')
        return TSC_MODES[number]
    if text in ("3", "native_paravirt"):
        raise SpecError("mode native_paravirt has been removed from Xen", hint="use default")
    return spec.one_of(text, TSC_MODES, "mode")


TSC_MODE = Kind(" \\| ".join(TSC_MODES), _parse_tsc_mode)


# --- names ----------------------------------------------------------------------------------------------------------

MAX_NAME = 128


def parse_domain_name(name: str) -> str:
    """``name`` if a domain can have it.

    Names become parts of file names (logs, dumps) and arguments of commands, where a number is a domain id. Raises
    ``SpecError``.
    """
    if not name:
        raise SpecError("a domain's name cannot be empty")
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME:
        raise SpecError(f"{show(name)} is longer than {MAX_NAME} bytes")
    if "/" in name or not name.isprintable() or name != name.strip() or name in (".", ".."):
        raise SpecError(f"{show(name)} is no name for a domain", hint="printable characters without '/'")
    if name.isdecimal():
        raise SpecError(f"{show(name)} would be taken for a domain id", hint="a name needs more than digits")
    if name.startswith("-"):
        raise SpecError(f"{show(name)} would be taken for an option")
    if name in ("Domain-0", "Xen"):
        raise SpecError(f"{show(name)} is the name of the host's own domain")
    return name


NAME = scalar("string", lambda text, context: parse_domain_name(text))


def _read_uuid(text: str, context: Context) -> uuid.UUID:
    if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text):
        raise SpecError(f"{show(text)} is no UUID", hint="for example 3a7f0e52-1b6c-4d3e-9f80-2c5d1e4b7a96")
    return uuid.UUID(text)


UUID = scalar("string, a UUID", _read_uuid)


# --- files ----------------------------------------------------------------------------------------------------------

def _read_path(text: str, context: Context, kind: str = "file") -> str:
    if not text:
        raise SpecError("names no file")
    if context.check_files:
        return spec.existing_path(text, context.directory, kind=kind)
    return spec.absolute(text, context.directory)


PATH = scalar("path", lambda text, context: Path(_read_path(text, context)))


@dataclass(frozen=True)
class KernelSpec:
    """What a domain runs: an ``"image"`` file, or for ``"python"`` class ``classname`` in the file ``path``.

    ``guest`` is the class itself where a program, not a file, made the configuration.
    """

    kind: Literal["python", "image"]
    path: Path
    classname: str | None = None
    guest: type | None = field(default=None, repr=False)

    @classmethod
    def of_class(cls, guest: type) -> "KernelSpec":
        """The kernel that is the Python class ``guest``."""
        try:
            path = inspect.getfile(guest)
        except (TypeError, OSError):
            path = "<interactive>"
        return cls("python", Path(path), guest.__qualname__, guest)


def _read_kernel(text: str, context: Context) -> KernelSpec:
    path, colon, classname = text.rpartition(":")
    if colon and path.endswith(".py"):
        if not classname.isidentifier() or keyword.iskeyword(classname):
            raise SpecError(f"{show(classname)} in {show(text)} is no class name", hint="write guest.py:ClassName")
        return KernelSpec("python", Path(_read_path(path, context)), classname)
    if text.endswith(".py"):
        raise SpecError(f"{show(text)} does not say which class is the guest", hint="write guest.py:ClassName")
    return KernelSpec("image", Path(_read_path(text, context)))


KERNEL = scalar("path of an image, or guest.py:ClassName", _read_kernel)


# --- CPUs -----------------------------------------------------------------------------------------------------------

def _parse_cpus(value: Value, context: Context) -> "cpus.CpuList | tuple[cpus.CpuList, ...]":
    if isinstance(value, Scalar):
        return cpus.parse_cpu_list(value.text)
    return list_of("", '"0-3", "2"', lambda text, context, where: cpus.parse_cpu_list(text)).parse(value, context)


CPUS = Kind('"0-3,^1" for all vCPUs, or a list with one string a vCPU', _parse_cpus)


def _parse_cpuid(value: Value, context: Context) -> cpus.CpuidPolicy:
    if isinstance(value, Scalar):
        return cpus.parse_cpuid_features(value.text)
    leaves = list_of("", '"1:ecx=..."', lambda text, context, where: cpus.parse_cpuid_leaf(text)).parse(value, context)
    return cpus.CpuidPolicy(leaves=leaves)


CPUID = Kind('"host,FEATURE=0,..." or a list of "LEAF:REG=BITS"', _parse_cpuid)


# --- devices --------------------------------------------------------------------------------------------------------

DISKS = list_of(
    "list of disk specifications", "'disk.img,raw,xvda,rw'",
    lambda text, context, where: disk.parse_disk(text, directory=context.directory, check_files=context.check_files,
                                                 warn=lambda message: context.warn(where, message)))
VIFS = list_of(
    "list of interface specifications", "'bridge=xenbr0'",
    lambda text, context, where: vif.parse_vif(text, warn=lambda message: context.warn(where, message)))


@dataclass(frozen=True, kw_only=True)
class Channel:
    """A byte stream between guest and host: ``name`` for the guest, a pty or the socket ``path`` on the host."""

    name: str
    connection: Literal["pty", "socket"]
    path: Path | None = None
    backend: str = "0"


CHANNEL_PARAMS: Mapping[str, spec.Param] = {
    "name": spec.Param("the name by which the guest finds it"),
    "connection": spec.Param("pty or socket"),
    "path": spec.Param("the socket, for connection=socket"),
    "backend": spec.Param("the domain that serves it"),
}


def _read_channel(text: str, context: Context, where: Location) -> Channel:
    said = spec.parse_pairs(text, CHANNEL_PARAMS)
    connection = spec.one_of(said.get("connection", "").lower(), ("pty", "socket"), "connection")
    if not said.get("name"):
        raise SpecError(f"{show(text)} has no name", hint="name=org.example.agent.1")
    if (connection == "socket") != bool(said.get("path")):
        raise SpecError(f"{show(text)}: path belongs to connection=socket, and only to it")
    path = Path(spec.absolute(said["path"], context.directory)) if said.get("path") else None
    return Channel(name=said["name"], connection=connection, path=path, backend=said.get("backend") or "0")


CHANNELS = list_of("list of channel specifications", "'name=org.example.agent.1,connection=pty'", _read_channel)


@dataclass(frozen=True, kw_only=True)
class P9:
    """A shared directory: ``path`` on the host, ``tag`` for the guest's mount."""

    tag: str
    path: Path
    security_model: str = "none"
    backend: str = "0"


P9_PARAMS: Mapping[str, spec.Param] = {
    "tag": spec.Param("the name by which the guest mounts it"),
    "path": spec.Param("the directory to share"),
    "security_model": spec.Param("none"),
    "backend": spec.Param("the domain that serves it"),
}


def _read_p9(text: str, context: Context, where: Location) -> P9:
    said = spec.parse_pairs(text, P9_PARAMS)
    for name in ("tag", "path"):
        if not said.get(name):
            raise SpecError(f"{show(text)} has no {name}", hint="for example tag=share,path=/srv/share")
    spec.one_of(said.get("security_model", "none"), ("none",), "security_model")
    return P9(tag=said["tag"], path=Path(_read_path(said["path"], context, "directory")),
              backend=said.get("backend") or "0")


P9S = list_of("list of 9pfs specifications", "'tag=share,path=/srv/share'", _read_p9)
