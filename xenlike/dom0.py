"""Domain 0: the privileged domain that serves the others their xenstore, consoles and disks.

Owns: the xenstore, the console and block back ends, and what they hold of each guest (ports, granted ring pages). Called by:
``Host``, on the lane. It is a real domain: its ports are bound by EVTCHNOP_bind_interdomain, guests' rings are mapped by
GNTTABOP_map_grant_ref, and its handlers run as upcalls of its vCPU. Only what moves blocks is C (csrc/io), attached to its ports.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from guest_sdk import Future, Guest, Port
from xenlike.devices.block import AttachConfig, BlockService
from xenlike.devices.console import ConsoleLog, ConsoleRing, SerialConsole
from xenlike.engine import XenError, check, ffi, lib
from xenlike.store.hooks import Hooks
from xenlike.store.ring import RingTransport
from xenlike.store.server import Store

__all__ = ["Dom0"]

_CONSOLE_REF, _STORE_REF = 0, 1
_FORGIVE_NS = 10_000_000_000


class _MappedRing:
    """A guest's ring page: granted to us, mapped, seen through ``page``; and the port that goes with it."""

    def __init__(self, dom0: "Dom0", domid: int, ref: int, remote_port: int) -> None:
        self._dom0 = dom0
        arg = {"host_addr": 0, "flags": lib.GNTMAP_device_map, "ref": ref, "dom": domid, "status": 0, "handle": 0, "dev_bus_addr": 0}
        dom0.grants._call("map_grant_ref", lib.GNTTABOP_map_grant_ref, arg)
        self._handle, self._bus = arg["handle"], arg["dev_bus_addr"]
        self.page = dom0.host.window(lib.DOMID_INVALID, self._bus >> 12)
        try:
            self.port: Port = dom0.events.bind_interdomain(domid, remote_port)
        except XenError:
            self._unmap()
            raise

    def _unmap(self) -> None:
        self.page.release()
        self._dom0.grants._call("unmap_grant_ref", lib.GNTTABOP_unmap_grant_ref,
                                {"host_addr": 0, "dev_bus_addr": self._bus, "handle": self._handle, "status": 0})

    def notify(self) -> None:
        """An event for the guest; one that is dying gets none."""
        try:
            self.port.notify()
        except XenError:
            pass

    def close(self) -> None:
        """Gives port and page back."""
        self.port.close()
        self._unmap()


@dataclass
class _Served:
    """What dom0 holds of one guest."""

    log: ConsoleLog
    console_ring: _MappedRing | None = None
    console: ConsoleRing | SerialConsole | None = None
    store_ring: _MappedRing | None = None
    store: RingTransport | None = None


class _StoreHooks(Hooks):
    """INTRODUCE and RELEASE attach and detach rings."""

    def __init__(self, dom0: "Dom0") -> None:
        self._dom0 = dom0

    def introduce(self, domid: int, gfn: int, port: int) -> None:
        self._dom0.attach_store(domid, port)

    def release(self, domid: int) -> None:
        self._dom0.detach_store(domid)


class _BlockOps:
    """What the block back ends ask of the hypervisor (devices/block/backend.py, BlockOps)."""

    def __init__(self, dom0: "Dom0") -> None:
        self._dom0 = dom0
        self._ports: dict[int, Port] = {}

    def bind_interdomain(self, front_domid: int, remote_port: int) -> int:
        port = self._dom0.events.bind_interdomain(front_domid, remote_port)
        self._ports[port.number] = port
        return port.number

    def close_port(self, port: int) -> None:
        bound = self._ports.pop(port, None)
        if bound is not None:
            bound.close()

    def attach(self, config: AttachConfig) -> int:
        c = ffi.new("struct xl_blk_config *")
        image = config.image
        c.sectors, c.cookie, c.kind, c.fd = image.sectors, config.cookie, lib.XL_BLK_FILE, image.fd
        c.flags = (0 if image.writable else lib.XL_BLK_READONLY) | (0 if image.discard else lib.XL_BLK_NO_DISCARD)
        c.port, c.front, c.nr_ring_pages = config.port, config.front, len(config.ring_refs)
        for n, ref in enumerate(config.ring_refs):
            c.ring_ref[n] = ref
        return check(lib.xl_blk_attach(self._dom0.host.c, c), "attach disk", config.front)

    def detach(self, ident: int) -> None:
        lib.xl_blk_detach(self._dom0.host.c, ident)


class Dom0(Guest):
    """The guest class that runs as domain 0."""

    def __init__(self, host: Any) -> None:
        super().__init__()
        self.host = host
        self.store = Store(_StoreHooks(self))
        self.xs = self.store.direct()
        self.block_service = BlockService(self.xs, _BlockOps(self))
        self._served: dict[int, _Served] = {}
        self._forgiving = False

    async def main(self) -> None:
        """Everything happens in upcalls."""
        await Future()

    # ---- guests come and go ------------------------------------------------------------------------------------------

    def adopt(self, domid: int, log: ConsoleLog, *, store_port: int, store_mfn: int, console_port: int) -> None:
        """Begins to serve a domain that was built: its console ring, and its xenstore ring by INTRODUCE. Raises XenError."""
        served = self._served[domid] = _Served(log)
        served.console_ring = ring = _MappedRing(self, domid, _CONSOLE_REF, console_port)
        served.console = ConsoleRing(ring.page, ring.notify, log.append)
        ring.port.on_event(served.console.service)
        self.xs.introduce(domid, store_mfn, store_port)

    def adopt_serial(self, domid: int, log: ConsoleLog) -> None:
        """Begins to serve a PC: its serial port is the console, and it knows nothing of xenstore."""
        self._served[domid] = _Served(log, console=SerialConsole(self.host.c, domid, log.append))

    def attach_store(self, domid: int, port: int) -> None:
        """INTRODUCE of a domain of ours."""
        served = self._served.get(domid)
        if served is None:
            return                      # introduced by hand, for a domain that is not here: nothing to attach
        if served.store is not None:
            served.store.reset()
            return
        served.store_ring = ring = _MappedRing(self, domid, _STORE_REF, port)
        served.store = RingTransport(self.store, domid, ring.page, ring.notify)
        ring.port.on_event(lambda: self._serve_store(served))

    def _serve_store(self, served: _Served) -> None:
        if served.store is not None:
            served.store.service()
            if served.store is not None and served.store.more:          # after all else that waits: a guest may go on for ever
                self.host.lane.call_at(self.host.now(), lambda: self._serve_store(served))
            if served.store is not None and served.store.connection.stalled:
                self._forgive_later()

    def _forgive_later(self) -> None:
        """A guest waits because others do not read the events it caused: in ten seconds they count no more. No timer runs while
        nobody waits: it would hide a host that has stalled."""
        if not self._forgiving:
            self._forgiving = True
            self.host.lane.call_at(self.host.now() + _FORGIVE_NS, self._forgive)

    def _forgive(self) -> None:
        self._forgiving = False
        self.store.tick()
        if any(s.store is not None and s.store.connection.stalled for s in self._served.values()):
            self._forgive_later()

    def detach_store(self, domid: int) -> None:
        """RELEASE, or death."""
        served = self._served.get(domid)
        if served is not None and served.store is not None:
            served.store.detach()
            served.store = None
            assert served.store_ring is not None
            served.store_ring.close()
            served.store_ring = None

    def drain_console(self, domid: int) -> None:
        """Takes what a domain that shut down left in its ring."""
        served = self._served.get(domid)
        if served is not None and served.console is not None:
            served.console.service()

    def console_used(self, domid: int) -> bool:
        """The domain prints through its ring, so what it says by console_io as well need not be shown twice."""
        served = self._served.get(domid)
        return served is not None and served.console is not None and served.console.used

    def send_console(self, domid: int, data: bytes) -> int:
        """Input for a domain's console. Returns how many bytes do not fit its ring yet."""
        served = self._served.get(domid)
        return served.console.send(data) if served is not None and served.console is not None else 0

    def abandon(self, domid: int) -> None:
        """Lets go of everything of a domain that is about to be destroyed."""
        self.block_service.domain_died(domid)
        served = self._served.get(domid)
        if served is None:
            return
        self.drain_console(domid)
        self.detach_store(domid)
        if served.console is not None:
            served.console.close()
        if served.console_ring is not None:
            served.console_ring.close()
        del self._served[domid]
        self.store.domain_died(domid)
