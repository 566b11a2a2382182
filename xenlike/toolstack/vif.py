"""Network interface specifications.

Owns the grammar of xl-network-configuration(5) and the derivation of MAC addresses. Called by ``config`` for
``vif = [...]`` and by ``network-attach``. Pure.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from .errors import SpecError, show
from .sizes import parse_integer
from .spec import Param, one_of, parse_pairs

PARAMS: dict[str, Param] = {
    "mac": Param("the guest's address, 00:16:3e:xx:xx:xx; derived from seed, domain name and place if absent"),
    "bridge": Param("the bridge to join; xenbr0 if absent"),
    "type": Param("vif (default) or, for HVM guests, ioemu"),
    "vifname": Param("the back end's name for the interface; vifDOMID.DEVID if absent"),
    "script": Param("hotplug script", used=False),
    "ip": Param("addresses the guest may use"),
    "backend": Param("the domain that serves the interface; only domain 0 does"),
    "rate": Param("limit for what the guest sends: 10Mb/s, 250KB/s, 1MB/s@20ms"),
    "model": Param("the emulated card of an HVM guest", used=False),
    "gatewaydev": Param("for routed set-ups", used=False),
    "netdev": Param("the old name of gatewaydev", used=False),
    "devid": Param("the device number; the place in the list if absent"),
    "mtu": Param("largest payload in bytes, 68-65517; 1500 if absent"),
    "vlan": Param("VLAN membership on the bridge", used=False),
    "trusted": Param("the guest may trust the back end", used=False, flag=True),
    "untrusted": Param("tell the guest not to trust the back end", used=False, flag=True),
}

XEN_OUI = "00:16:3e"


@dataclass(frozen=True)
class Rate:
    """A limit by credit: ``bytes_per_interval`` bytes may be sent in each ``interval_us`` microseconds."""

    bytes_per_interval: int
    interval_us: int


@dataclass(frozen=True, kw_only=True)
class Vif:
    """One network interface. ``mac`` is in lower case and never None once a configuration has been read."""

    mac: str | None = None
    bridge: str = "xenbr0"
    type: str | None = None
    vifname: str | None = None
    script: str | None = None
    ip: str | None = None
    backend: str = "0"
    rate: Rate | None = None
    devid: int | None = None
    mtu: int = 1500


def parse_vif(spec: str, *, warn: Callable[[str], None] = lambda message: None) -> Vif:
    """The interface that ``spec`` describes; the empty string is one with every default. Raises ``SpecError``.

    ``warn`` is told of parameters without effect.
    """
    said = parse_pairs(spec, PARAMS)
    for name in said:
        if not PARAMS[name].used:
            warn(f"{name} has no effect")
    devid = _bounded(said["devid"], "devid", 0, 0xFFFF) if "devid" in said else None
    return Vif(
        mac=parse_mac(said["mac"]) if "mac" in said else None,
        bridge=said.get("bridge") or "xenbr0",
        type=one_of(said["type"], ("vif", "ioemu"), "type") if "type" in said else None,
        vifname=said.get("vifname") or None,
        script=said.get("script") or None,
        ip=said.get("ip") or None,
        backend=said.get("backend") or "0",
        rate=parse_rate(said["rate"]) if "rate" in said else None,
        devid=devid,
        mtu=_bounded(said.get("mtu", "1500"), "mtu", 68, 65517))


def _bounded(text: str, what: str, low: int, high: int) -> int:
    number = parse_integer(text)
    if not low <= number <= high:
        raise SpecError(f"{what} {number} is out of range", hint=f"{low} to {high}")
    return number


def parse_mac(text: str) -> str:
    """The MAC address ``text`` in the form ``00:16:3e:01:02:03``. Raises ``SpecError``."""
    if not re.fullmatch(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){5}", text):
        raise SpecError(f"{show(text)} is no MAC address", hint="six pairs of hexadecimal digits: 00:16:3e:01:02:03")
    octets = bytes(int(part, 16) for part in text.split(":"))
    if octets[0] & 1:
        raise SpecError(f"{show(text)} is a multicast address, which no interface can have",
                        hint="the first byte must be even")
    if not any(octets):
        raise SpecError(f"{show(text)} is no interface's address", hint="leave mac out to have one derived")
    return octets.hex(":")


def derive_mac(seed: int, name: str, index: int, *, taken: Collection[str] = ()) -> str:
    """The address of interface ``index`` of domain ``name`` on a host with ``seed``: always the same one.

    It lies in Xen's own range. The domain's name goes in so that two domains of one host differ; an address that is
    ``taken`` is passed over.
    """
    attempt = 0
    while True:
        digest = hashlib.sha256(f"mac/{seed}/{index}/{attempt}/{name}".encode()).digest()
        mac = XEN_OUI + ":" + bytes((digest[0] & 0x7F, digest[1], digest[2])).hex(":")
        if mac not in taken:
            return mac
        attempt += 1


_RATE = re.compile(r"([0-9]{1,12})([GMK]?)([Bb])/s(?:@([0-9]{1,12})(s|ms|us|m|u)?)?", re.ASCII)
_RATE_SCALE = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_INTERVAL_US = {None: 10**6, "s": 10**6, "ms": 10**3, "m": 10**3, "us": 1, "u": 1}


def parse_rate(text: str) -> Rate:
    """A rate such as ``10Mb/s`` (bits), ``250KB/s`` (bytes), ``1MB/s@20ms``. Units are decimal, as on the wire.

    The interval, after ``@``, is 50 ms if absent, and a bare number counts seconds. Raises ``SpecError``.
    """
    match = _RATE.fullmatch(text)
    if match is None:
        raise SpecError(f"{show(text)} is no rate", hint="for example 10Mb/s, 250KB/s or 1MB/s@20ms")
    number, scale, unit, interval, interval_unit = match.groups()
    per_second = parse_integer(number) * _RATE_SCALE[scale] // (8 if unit == "b" else 1)
    interval_us = parse_integer(interval) * _INTERVAL_US[interval_unit] if interval else 50_000
    per_interval = per_second * interval_us // 10**6
    if not 0 < interval_us < 1 << 32:
        raise SpecError(f"the interval of rate {show(text)} is out of range", hint="1us to 4294s")
    if not 0 < per_interval < 1 << 64:
        raise SpecError(f"rate {show(text)} lets {'too much' if per_interval else 'not one byte'} through an interval")
    return Rate(per_interval, interval_us)
