"""Disk specifications and virtual device numbers.

Owns the grammar of xl-disk-configuration(5), old forms included, and the mapping between device names and the numbers
that guests see (xen-vbd-interface(7)). Called by ``config`` for ``disk = [...]`` and by ``block-attach``. What a
specification may ask for and what this version can do are different things: formats and back ends that no back end
here serves parse, and ``config.check_supported`` refuses them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .errors import SpecError, did_you_mean, show
from .sizes import parse_integer
from .spec import Param, absolute, existing_path, one_of, unknown_parameter

FORMATS = ("raw", "qcow", "qcow2", "vhd", "qed", "empty")
BACKEND_TYPES = ("phy", "tap", "qdisk", "standalone")
ACCESS = {"r": False, "ro": False, "w": True, "rw": True, "": True}     # → writable

PARAMS: dict[str, Param] = {
    "target": Param("image file or block device; takes the rest of the specification, commas included"),
    "format": Param("raw (default), qcow, qcow2, vhd, qed; only raw is served"),
    "vdev": Param("the device in the guest: xvda, xvda1, sda, hda, d0p1, or its number"),
    "access": Param("rw or w (default), ro or r"),
    "devtype": Param("disk (default) or cdrom"),
    "cdrom": Param("the same as devtype=cdrom: read-only, may be empty", flag=True),
    "backend": Param("the domain that serves the disk; only domain 0 does"),
    "backendtype": Param("phy, tap, qdisk or standalone: which of Xen's back ends serves it", used=False),
    "script": Param("a hotplug script that makes sense of the target; not supported"),
    "specification": Param("xen or virtio; only xen is served"),
    "discard": Param("offer discard to the guest (default)", flag=True),
    "no-discard": Param("do not offer discard", flag=True),
    "direct-io-safe": Param("allow O_DIRECT on the image", used=False, flag=True),
    "trusted": Param("the guest may trust the back end (default)", flag=True),
    "untrusted": Param("tell the guest not to trust the back end", flag=True),
}


@dataclass(frozen=True, kw_only=True)
class Disk:
    """One virtual disk.

    ``target`` is an absolute path, or with ``script`` whatever the script wants, or None in an empty CD drive.
    ``device`` is the number in xenstore's ``virtual-device``, ``vdev`` its name as it was written. ``backend`` is the
    name or number of the serving domain.
    """

    target: str | None
    vdev: str
    device: int
    format: str = "raw"
    writable: bool = True
    cdrom: bool = False
    backend: str = "0"
    backendtype: str | None = None
    script: str | None = None
    specification: str = "xen"
    discard: bool = True
    direct_io_safe: bool = False
    trusted: bool = True


# --- device names and numbers ---------------------------------------------------------------------------------------

@dataclass(frozen=True)
class _Naming:
    """One family of names: ``prefix`` + letters + partition, within ``disks`` × ``partitions``, and its number."""

    prefix: str
    disks: int
    partitions: int
    encode: Callable[[int, int], int]


def _encode_xvd(disk: int, partition: int) -> int:
    if disk < 16 and partition < 16:
        return 202 << 8 | disk << 4 | partition
    return 1 << 28 | disk << 8 | partition      # the extended form, for what has no place in the first


_XVD = _Naming("xvd", 1 << 20, 256, _encode_xvd)
_NAMINGS = (
    _XVD,
    _Naming("hd", 4, 64, lambda disk, partition: (3 if disk < 2 else 22) << 8 | (disk & 1) << 6 | partition),
    _Naming("sd", 16, 16, lambda disk, partition: 8 << 8 | disk << 4 | partition),
)
_LETTERED = re.compile(r"(xvd|hd|sd)([a-z]{1,5})([1-9][0-9]{0,2})?", re.ASCII)
_NUMBERED = re.compile(r"d([0-9]{1,7})(?:p([0-9]{1,3}))?", re.ASCII)


def parse_vdev(name: str) -> int:
    """The number of a virtual block device: ``xvda`` is 51712, ``xvda1`` and ``d0p1`` are 51713, ``sda`` 2048.

    A number in decimal, hexadecimal or octal stands for itself. Raises ``SpecError``.
    """
    if match := _NUMBERED.fullmatch(name):
        naming, disk, partition = _XVD, int(match[1]), int(match[2] or 0)
    elif match := _LETTERED.fullmatch(name):
        naming = next(n for n in _NAMINGS if n.prefix == match[1])
        disk, partition = _letters_to_index(match[2]), int(match[3] or 0)
    elif name[:1].isdigit():
        number = parse_integer(name)
        if number >= 1 << 31:
            raise SpecError(f"virtual device number {show(name)} does not fit in 31 bits")
        return number
    else:
        raise SpecError(f"{show(name)} is no virtual device", hint="xvda, xvda1, sda, hda, d0p1, or a number")
    if disk >= naming.disks or partition >= naming.partitions:
        raise SpecError(f"there is no virtual device {show(name)}",
                        hint=f"{naming.prefix} has disks 0-{naming.disks - 1}, partitions 0-{naming.partitions - 1}")
    return naming.encode(disk, partition)


def vdev_name(number: int) -> str:
    """The name of virtual block device ``number``: the one that ``parse_vdev`` turns into it, or else the number."""
    major, minor = number >> 8, number & 0xFF
    if number >> 28 == 1:
        disk, partition, naming = (number & 0xFFFFFFF) >> 8, minor, _XVD
    elif major in (3, 22):
        disk, partition, naming = (minor >> 6) + (0 if major == 3 else 2), minor & 63, _NAMINGS[1]
    else:
        disk, partition, naming = minor >> 4, minor & 15, _NAMINGS[2] if major == 8 else _XVD
    if disk < naming.disks and naming.encode(disk, partition) == number:
        return naming.prefix + _index_to_letters(disk) + (str(partition) if partition else "")
    return str(number)


def _letters_to_index(letters: str) -> int:
    """a, b … z, aa, ab …: counting in base 26 without a zero."""
    index = 0
    for letter in letters:
        index = index * 26 + ord(letter) - ord("a") + 1
    return index - 1


def _index_to_letters(index: int) -> str:
    letters = ""
    while index >= 0:
        index, letter = divmod(index, 26)
        letters = chr(ord("a") + letter) + letters
        index -= 1
    return letters


# --- the specification ----------------------------------------------------------------------------------------------

_PREFIX_FORMATS = ("raw", "qcow", "qcow2", "vhd")
_PREFIX_SCRIPTS = ("iscsi", "nbd", "enbd", "drbd")
_PREFIX_IGNORED = ("tapdisk", "tap", "tap2", "aio", "ioemu", "file", "phy")
_PREFIX = re.compile(r"([a-z][a-z0-9]*):", re.ASCII)
_NAMED = re.compile(r"([a-z][-_a-z0-9]*)=", re.ASCII)


class _Reader:
    """The state of reading one specification: what has been said so far, by name or by position."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.said: dict[str, str] = {}
        self.old_prefix = False         # an old "raw:" or "phy:" came first: there is no positional format then
        self.prefixes: list[str] = []

    def say(self, name: str, value: str) -> None:
        """Set a parameter once; to overwrite an empty value is no repetition (the manual says so of target)."""
        if self.said.get(name):
            raise SpecError(f"{name} is given twice in {show(self.spec)}")
        self.said[name] = value

    def read(self) -> dict[str, str]:
        rest = self.spec.lstrip(" \t\n")
        while rest:
            rest = self._prefix(rest) or self._target(rest) or self._parameter(rest)
            rest = rest.lstrip(" \t\n")
        return self.said

    def _prefix(self, rest: str) -> str | None:
        """Take an old ``word:`` prefix off; the rest, or None if there is none (a lone prefix leaves a comma)."""
        match = _PREFIX.match(rest)
        if match is None:
            return None
        word, after = match[1], rest[match.end():]
        if word in _PREFIX_FORMATS:
            self.say("format", word)
        elif word in _PREFIX_SCRIPTS:
            self.say("script", f"block-{word}")
        elif word not in _PREFIX_IGNORED:
            if re.match(r"[a-z0-9]", after):    # hdc:cdrom, or a path with a colon in it
                return None
            raise SpecError(f"unknown prefix {show(word + ':')} in {show(self.spec)}",
                            hint=did_you_mean(word, _PREFIX_FORMATS + _PREFIX_SCRIPTS + _PREFIX_IGNORED)
                            or "write target=... last for a target with a colon in it")
        self.old_prefix = True
        self.prefixes.append(word)
        return after or ","

    def _target(self, rest: str) -> str | None:
        if not rest.startswith("target="):
            return None
        value = rest.removeprefix("target=")
        self.say("target", value[:-1] if value.endswith(",") else value)
        return " "      # nothing is left, and that is not None

    def _parameter(self, rest: str) -> str:
        part, _, after = rest.partition(",")
        if match := _NAMED.match(part):
            name, value = match[1], part[match.end():].strip()
            if name not in PARAMS or PARAMS[name].flag:
                raise unknown_parameter(name, PARAMS)
            if value or name not in ("devtype", "backendtype", "specification"):
                self.say(name, value)
        elif part.strip() in PARAMS and PARAMS[part.strip()].flag:
            self.said[part.strip()] = "1"
        elif "=" in part:
            raise SpecError(f"{show(part)} is neither a parameter nor a place in {show(self.spec)}",
                            hint="write target=... last for a target with '=' in it")
        else:
            self._positional(part)
        return after

    def _positional(self, part: str) -> None:
        if "target" not in self.said:
            self.said["target"] = part
        elif "format" not in self.said and not self.old_prefix:
            if not self.said["target"] and ":" in part:     # ",hdc:cdrom,r": xend's way to say an empty drive
                self.said["format"] = "empty"
                self._vdev(part)
            else:
                self.said["format"] = part.strip()
        elif "vdev" not in self.said:
            self._vdev(part)
        elif "access" not in self.said:
            self.said["access"] = part.strip()
        else:
            raise SpecError(f"{show(part)} has no place in {show(self.spec)}",
                            hint="the places are target,format,vdev,access")

    def _vdev(self, part: str) -> None:
        vdev, colon, devtype = part.strip().rpartition(":")
        self.said["vdev"] = vdev if colon else devtype
        if colon:
            self.say("devtype", devtype)


def parse_disk(spec: str, *, directory: str = "/", check_files: bool = True,
               warn: Callable[[str], None] = lambda message: None) -> Disk:
    """The disk that ``spec`` describes, in any form of xl-disk-configuration(5).

    ``directory`` is what relative targets are relative to (for old ``phy:`` targets it is /dev, as in xl); with
    ``check_files`` the target must exist and allow the access. ``warn`` is told of parameters without effect.
    Raises ``SpecError``.
    """
    reader = _Reader(spec)
    said = reader.read()
    for name in said:
        if not PARAMS[name].used:
            warn(f"{name} has no effect")

    vdev = said.get("vdev", "")
    if not vdev:
        raise SpecError(f"{show(spec)} names no virtual device", hint="the places are target,format,vdev,access: "
                        "for example disk.img,raw,xvda,rw")
    device = parse_vdev(vdev)
    cdrom = "cdrom" in said or one_of(said.get("devtype", "disk"), ("disk", "cdrom"), "devtype") == "cdrom"
    access = said.get("access", "")
    if access not in ACCESS:
        raise SpecError(f"unknown access {show(access)}", hint="rw or w, ro or r")
    writable = ACCESS[access] and not cdrom
    format = one_of(said.get("format") or "raw", FORMATS, "format")
    backendtype = said.get("backendtype")
    if backendtype is not None:
        one_of(backendtype, BACKEND_TYPES, "backendtype")
    script = said.get("script") or None

    target: str | None = said.get("target") or None
    if target is None or format == "empty":
        if not cdrom:
            raise SpecError(f"{show(spec)} names no image file", hint="only a CD drive (cdrom) can be empty")
        if target is not None:
            raise SpecError("a drive of format empty has no target")
        format = "empty"
    elif script is None:
        base = "/dev" if "phy" in reader.prefixes else directory
        target = existing_path(target, base, write=writable) if check_files else absolute(target, base)

    return Disk(
        target=target, vdev=vdev, device=device, format=format, writable=writable, cdrom=cdrom,
        backend=said.get("backend") or "0", backendtype=backendtype, script=script,
        specification=one_of(said.get("specification", "xen"), ("xen", "virtio"), "specification"),
        discard="no-discard" not in said, direct_io_safe="direct-io-safe" in said, trusted="untrusted" not in said)
