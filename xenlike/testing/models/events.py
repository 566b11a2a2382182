"""Event channels with the 2-level ABI: what the hypercalls answer and which bits a guest finds set.

The model owns, for each domain, its ports, the pending and mask bits of shared_info, and for each vCPU the upcall
fields of its vcpu_info and whether it is blocked. Guests' own stores (clearing a pending bit, masking, taking an
upcall) are methods too, so that a history of guest and hypervisor steps can be replayed. Time is outside: the caller
says when a poll's timeout has passed.

Where the ABI description is silent the model does what Xen 4.17 does, and says so in a comment.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .abi import (DOMID_SELF, EEXIST, EINVAL, ENOENT, ENOSPC, ENOSYS, ENXIO, EPERM, ESRCH, PAGE_SIZE)

# Port states and, by the same numbers, EVTCHNSTAT_*; RESERVED exists only inside.
FREE, UNBOUND, INTERDOMAIN, PIRQ, VIRQ, IPI, RESERVED = range(7)

NR_VIRQS = 24
VIRQ_DOM_EXC = 3                                 # global: a domain changed state
PER_VCPU_VIRQS = frozenset({0, 1, 7, 13})       # TIMER, DEBUG, XENOPROF, XENPMU
MAX_PORTS = 4096                                # 64 words of 64 bits
PORT_BUCKET = 64                                # Xen allocates ports in pages of 64
POLL_MAX_PORTS = 128
LEGACY_VCPUS = 32                               # vCPUs whose vcpu_info lies in shared_info


@dataclass(slots=True)
class Port:
    """One event channel. `vcpu` is where it is delivered; the rest depends on `state`."""

    state: int = FREE
    vcpu: int = 0
    remote_dom: int = 0         # UNBOUND, INTERDOMAIN
    remote_port: int = 0        # INTERDOMAIN
    virq: int = 0               # VIRQ
    xen: bool = False           # consumed by the hypervisor itself: closed to the guest


@dataclass(slots=True)
class VCpu:
    """A vCPU's event state. `poll` is None, or the port it polls for, or -1 for any."""

    id: int
    upcall_pending: int = 0
    upcall_mask: int = 1
    pending_sel: int = 0
    blocked: bool = False
    poll: int | None = None
    up: bool = True
    info: tuple[int, int] | None = None         # (mfn, offset) of a registered vcpu_info
    virqs: dict[int, int] = field(default_factory=dict)
    # Kicked while its upcall mask was set. Xen wakes the vCPU, a stricter hypervisor need not: a woken poller must
    # look again anyway. The poll it was in is kept, so that `sleep_on` can undo the waking.
    spurious: int | None = None

    @property
    def deliverable(self) -> bool:
        return bool(self.upcall_pending) and not self.upcall_mask


@dataclass(slots=True)
class Domain:
    """A domain's ports and the event words of its shared_info; bit p of `pending` and `mask` is port p."""

    id: int
    vcpus: list[VCpu]
    privileged: bool
    max_port: int
    ports: list[Port]
    pending: int = 0
    mask: int = 0
    lowest_free: int = 1        # no port below is free

    @property
    def active(self) -> int:
        return sum(port.state not in (FREE, RESERVED) for port in self.ports)


class EventModel:
    """Event channels of a whole host.

    `fixed_ports` says which ports exist when none is allocated. None is Xen's way: ports come in buckets of 64 and
    a number beyond the last bucket is invalid. A number makes that many ports valid from the start.
    `nr_pirqs` bounds bind_pirq; no domain here is permitted an interrupt.
    """

    def __init__(self, *, fixed_ports: int | None = None, nr_pirqs: int = 256) -> None:
        self.fixed_ports = fixed_ports
        self.nr_pirqs = nr_pirqs
        self.domains: dict[int, Domain] = {}
        # For who compares, and empties them: vCPUs unblocked, and domains whose event words changed, since last time.
        self.woken: set[tuple[int, int]] = set()
        self.touched: set[int] = set()

    # --- life and death -----------------------------------------------------------------------------------------

    def create_domain(self, domid: int, vcpus: int, *, privileged: bool = False, max_port: int = 1023) -> Domain:
        """Make a domain: all words zero (ports start unmasked), every upcall mask 1, port 0 reserved."""
        ports = [Port() for _ in range(self.fixed_ports or PORT_BUCKET)]
        ports[0].state = RESERVED
        dom = Domain(domid, [VCpu(n) for n in range(vcpus)], privileged, max_port, ports)
        self.domains[domid] = dom
        return dom

    def destroy_domain(self, domid: int) -> None:
        """Close every port, highest first; each interdomain peer becomes UNBOUND, waiting for the dead domain.

        Peers are not notified: they learn of the death from xenstore, whose daemon domain 0's VIRQ_DOM_EXC tells."""
        dom = self.domains[domid]
        for number in range(len(dom.ports) - 1, 0, -1):
            self._close(dom, number, guest=False)
        del self.domains[domid]
        self.touched.discard(domid)
        if 0 in self.domains:
            self.raise_virq(0, 0, VIRQ_DOM_EXC)

    # --- hypercalls ---------------------------------------------------------------------------------------------

    def alloc_unbound(self, caller: int, domid: int, remote: int) -> tuple[int, int]:
        """EVTCHNOP_alloc_unbound → (rc, port)."""
        dom = self._find(caller, domid)
        if dom is None:
            return -ESRCH, 0
        rc, number = self._allocate(dom)
        if rc:
            return rc, 0
        # The permission check comes after the port was found, so a full table is reported first.
        if not self._may_control(caller, dom.id):
            return -EPERM, 0
        port = dom.ports[number]
        port.state, port.remote_dom = UNBOUND, caller if remote == DOMID_SELF else remote
        return 0, number

    def bind_interdomain(self, caller: int, remote_domid: int, remote_port: int) -> tuple[int, int]:
        """EVTCHNOP_bind_interdomain → (rc, local port)."""
        local, remote = self.domains[caller], self._find(caller, remote_domid)
        if remote is None:
            return -ESRCH, 0
        rc, number = self._allocate(local)
        if rc:
            return rc, 0
        peer = self._port(remote, remote_port)
        if peer is None or peer.state != UNBOUND or peer.remote_dom != caller:
            return -EINVAL, 0
        port = local.ports[number]
        port.state, port.remote_dom, port.remote_port = INTERDOMAIN, remote.id, remote_port
        peer.state, peer.remote_dom, peer.remote_port = INTERDOMAIN, caller, number
        # Notifications sent while the peer was unbound are lost: make the binder look once.
        self._set_pending(local, number)
        return 0, number

    def bind_virq(self, caller: int, virq: int, vcpu: int) -> tuple[int, int]:
        """EVTCHNOP_bind_virq → (rc, port)."""
        dom = self.domains[caller]
        if not 0 <= virq < NR_VIRQS:
            return -EINVAL, 0
        if virq not in PER_VCPU_VIRQS and vcpu != 0:
            return -EINVAL, 0
        if not vcpu < len(dom.vcpus):
            return -ENOENT, 0
        if virq in dom.vcpus[vcpu].virqs:
            return -EEXIST, 0
        rc, number = self._allocate(dom)
        if rc:
            return rc, 0
        port = dom.ports[number]
        port.state, port.vcpu, port.virq = VIRQ, vcpu, virq
        dom.vcpus[vcpu].virqs[virq] = number
        return 0, number

    def bind_pirq(self, caller: int, pirq: int) -> tuple[int, int]:
        """EVTCHNOP_bind_pirq → (rc, port): always an error, as no interrupt is passed through."""
        return (-EINVAL if pirq >= self.nr_pirqs else -EPERM), 0

    def bind_ipi(self, caller: int, vcpu: int) -> tuple[int, int]:
        """EVTCHNOP_bind_ipi → (rc, port)."""
        dom = self.domains[caller]
        if not vcpu < len(dom.vcpus):
            return -ENOENT, 0
        rc, number = self._allocate(dom)
        if rc:
            return rc, 0
        port = dom.ports[number]
        port.state, port.vcpu = IPI, vcpu
        return 0, number

    def close(self, caller: int, number: int) -> int:
        """EVTCHNOP_close."""
        return self._close(self.domains[caller], number, guest=True)

    def send(self, caller: int, number: int) -> int:
        """EVTCHNOP_send."""
        dom = self.domains[caller]
        port = self._port(dom, number)
        if port is None or port.xen:
            return -EINVAL
        if port.state == INTERDOMAIN:
            self._set_pending(self.domains[port.remote_dom], port.remote_port)
        elif port.state == IPI:
            self._set_pending(dom, number)
        elif port.state != UNBOUND:             # unbound: dropped in silence
            return -EINVAL
        return 0

    def status(self, caller: int, domid: int, number: int) -> tuple[int, int, int, tuple[int, int]]:
        """EVTCHNOP_status → (rc, status, vcpu, union as (first, second)).

        The union is (remote domain, 0), (remote domain, remote port), (virq, 0) or zeros."""
        dom = self._find(caller, domid)
        if dom is None:
            return -ESRCH, 0, 0, (0, 0)
        port = self._port(dom, number)
        if port is None:
            return -EINVAL, 0, 0, (0, 0)
        if not self._may_control(caller, dom.id):
            return -EPERM, 0, 0, (0, 0)
        union = {UNBOUND: (port.remote_dom, 0), INTERDOMAIN: (port.remote_dom, port.remote_port),
                 VIRQ: (port.virq, 0)}.get(port.state, (0, 0))
        return 0, FREE if port.state == RESERVED else port.state, port.vcpu, union

    def bind_vcpu(self, caller: int, number: int, vcpu: int) -> int:
        """EVTCHNOP_bind_vcpu: later events go to `vcpu`; one already pending stays where it was raised."""
        dom = self.domains[caller]
        if not vcpu < len(dom.vcpus):
            return -ENOENT
        port = self._port(dom, number)
        if port is None or port.xen:
            return -EINVAL
        if port.state in (UNBOUND, INTERDOMAIN) or (port.state == VIRQ and port.virq not in PER_VCPU_VIRQS):
            port.vcpu = vcpu
            return 0
        return -EINVAL

    def unmask(self, caller: int, number: int) -> int:
        """EVTCHNOP_unmask. A valid number without a channel is accepted and nothing happens, as in Xen."""
        dom = self.domains[caller]
        port = self._port(dom, number)
        if port is None:
            return -EINVAL
        bit = 1 << number
        if not port.xen and port.state not in (FREE, RESERVED) and dom.mask & bit:
            dom.mask &= ~bit
            if dom.pending & bit:
                self._select(dom, dom.vcpus[port.vcpu], number)
        return 0

    def reset(self, caller: int, domid: int) -> int:
        """EVTCHNOP_reset: close every port a guest may close. Another's domain must be paused by its controller
        (-EINVAL), which nothing here does."""
        dom = self._find(caller, domid)
        if dom is None:
            return -ESRCH
        if not self._may_control(caller, dom.id):
            return -EPERM
        if dom.id != caller:
            return -EINVAL
        for number in range(1, len(dom.ports)):
            self._close(dom, number, guest=True)
        return 0

    def init_control(self, caller: int) -> int:
        """EVTCHNOP_init_control: the FIFO ABI is not offered, so guests stay with two levels."""
        return -ENOSYS

    def expand_array(self, caller: int) -> int:
        """EVTCHNOP_expand_array: as init_control."""
        return -ENOSYS

    def set_priority(self, caller: int, number: int) -> int:
        """EVTCHNOP_set_priority: two levels know no priorities; Xen looks at the port first."""
        return -EINVAL if self._port(self.domains[caller], number) is None else -ENOSYS

    def block(self, caller: int, vcpu: int) -> int:
        """SCHEDOP_block: enables upcalls, then sleeps unless one is due."""
        v = self.domains[caller].vcpus[vcpu]
        v.upcall_mask = 0
        if not v.deliverable:
            v.blocked, v.poll, v.spurious = True, None, None
        return 0

    def poll(self, caller: int, vcpu: int, ports: list[int]) -> int:
        """SCHEDOP_poll. 0 with the vCPU not blocked means it returns at once. Leaves the upcall mask alone."""
        dom = self.domains[caller]
        v = dom.vcpus[vcpu]
        if len(ports) > POLL_MAX_PORTS:
            return -EINVAL
        if v.deliverable:
            return 0
        for number in ports:
            port = self._port(dom, number)
            if port is None or port.xen or port.state in (FREE, RESERVED):
                return -EINVAL
            if dom.pending >> number & 1:       # masked or not
                return 0
        v.blocked, v.poll, v.spurious = True, ports[0] if len(ports) == 1 else -1, None
        return 0

    def poll_timeout(self, domid: int, vcpu: int) -> None:
        """The timeout of a poll passes: the vCPU runs again if it still polls."""
        v = self.domains[domid].vcpus[vcpu]
        if v.poll is not None:
            self._unblock(self.domains[domid], v)

    def sleep_on(self, domid: int, vcpu: int) -> bool:
        """The hypervisor did not wake a poller for an event it masks: go on polling. False if it had to."""
        v = self.domains[domid].vcpus[vcpu]
        if v.spurious is None:
            return False
        v.blocked, v.poll, v.spurious = True, v.spurious, None
        return True

    def register_vcpu_info(self, caller: int, vcpu: int, target: int, mfn: int, offset: int, *,
                           owned: bool = True, writable: bool = True) -> int:
        """VCPUOP_register_vcpu_info as in 4.17. `owned` and `writable` say what the frame table thinks of `mfn`.

        The new area takes over the old contents, then everything is marked pending, so that nothing is lost."""
        vcpus = self.domains[caller].vcpus
        if target >= len(vcpus):
            return -ENOENT
        v = vcpus[target]
        if offset > PAGE_SIZE - 64 or offset % 8:
            return -ENXIO
        if v.info is not None or (target != vcpu and v.up) or not owned or not writable:
            return -EINVAL
        v.info = (mfn, offset)
        v.pending_sel = (1 << 64) - 1
        self._mark_upcall(self.domains[caller], v)
        return 0

    # --- the host and the guest's own stores --------------------------------------------------------------------

    def raise_virq(self, domid: int, vcpu: int, virq: int) -> None:
        """The hypervisor raises a VIRQ: lost unless bound. Per-vCPU ones go to `vcpu`, others where the port is."""
        dom = self.domains[domid]
        number = dom.vcpus[vcpu if virq in PER_VCPU_VIRQS else 0].virqs.get(virq)
        if number is not None:
            self._set_pending(dom, number)

    def guest_mask(self, domid: int, number: int, masked: bool) -> None:
        """The guest writes its mask bit by a plain store: clearing it re-delivers nothing."""
        dom = self.domains[domid]
        dom.mask = dom.mask | 1 << number if masked else dom.mask & ~(1 << number)

    def guest_clear(self, domid: int, number: int) -> None:
        """The guest acknowledges an event: clears the pending bit."""
        self.domains[domid].pending &= ~(1 << number)

    def guest_upcall_mask(self, domid: int, vcpu: int, masked: int) -> None:
        """The guest writes evtchn_upcall_mask by a plain store."""
        self.domains[domid].vcpus[vcpu].upcall_mask = masked

    def guest_upcall(self, domid: int, vcpu: int) -> list[int]:
        """The guest's upcall handler: pending byte 0, selector taken, every unmasked pending port handled (cleared).

        Returns the ports in the order a handler scans them."""
        dom = self.domains[domid]
        v = dom.vcpus[vcpu]
        v.upcall_pending, selector, v.pending_sel = 0, v.pending_sel, 0
        handled = []
        ready = dom.pending & ~dom.mask
        for word in range(64):
            if selector >> word & 1:
                bits = ready >> word * 64 & (1 << 64) - 1
                handled += [word * 64 + n for n in range(64) if bits >> n & 1]
        for number in handled:
            dom.pending &= ~(1 << number)
        return handled

    # --- inside -------------------------------------------------------------------------------------------------

    def _find(self, caller: int, domid: int) -> Domain | None:
        return self.domains.get(caller if domid == DOMID_SELF else domid)

    def _may_control(self, caller: int, domid: int) -> bool:
        return caller == domid or self.domains[caller].privileged

    @staticmethod
    def _port(dom: Domain, number: int) -> Port | None:
        return dom.ports[number] if 0 <= number < len(dom.ports) else None

    def _allocate(self, dom: Domain) -> tuple[int, int]:
        """The lowest free port. A bucket that an allocation opened stays, even if the call fails afterwards."""
        number = dom.lowest_free
        while number < len(dom.ports) and dom.ports[number].state != FREE:
            number += 1
        dom.lowest_free = number
        if number > dom.max_port or number >= MAX_PORTS:
            return -ENOSPC, 0
        if number >= len(dom.ports):
            if self.fixed_ports is not None:
                return -ENOSPC, 0
            dom.ports += [Port() for _ in range(PORT_BUCKET)]
        return 0, number

    def _close(self, dom: Domain, number: int, *, guest: bool) -> int:
        port = self._port(dom, number)
        if port is None or port.state in (FREE, RESERVED) or (port.xen and guest):
            return -EINVAL
        if port.state == VIRQ:
            # A global VIRQ is recorded on vCPU 0, wherever bind_vcpu has sent its events since.
            owner = port.vcpu if port.virq in PER_VCPU_VIRQS else 0
            del dom.vcpus[owner].virqs[port.virq]
        elif port.state == INTERDOMAIN:
            peer = self.domains[port.remote_dom].ports[port.remote_port]
            peer.state, peer.remote_dom, peer.remote_port = UNBOUND, dom.id, 0
        self.touched.add(dom.id)
        dom.ports[number] = Port()
        dom.pending &= ~(1 << number)           # the mask bit and the selectors stay as they are
        dom.lowest_free = min(dom.lowest_free, number)
        return 0

    def _set_pending(self, dom: Domain, number: int) -> None:
        bit = 1 << number
        self.touched.add(dom.id)
        if dom.pending & bit:
            return                              # whoever polls for it was woken by the first edge
        dom.pending |= bit
        if not dom.mask & bit:
            self._select(dom, dom.vcpus[dom.ports[number].vcpu], number)
        for v in dom.vcpus:
            if v.poll is not None and v.poll in (-1, number):
                self._unblock(dom, v)

    def _select(self, dom: Domain, v: VCpu, number: int) -> None:
        word = 1 << (number >> 6)
        if not v.pending_sel & word:
            v.pending_sel |= word
            self._mark_upcall(dom, v)

    def _mark_upcall(self, dom: Domain, v: VCpu) -> None:
        if v.upcall_pending & 1:
            return
        v.upcall_pending |= 1
        if v.blocked:
            v.spurious = v.poll if v.upcall_mask else None
            self._unblock(dom, v)

    def _unblock(self, dom: Domain, v: VCpu) -> None:
        if v.blocked:
            v.blocked, v.poll = False, None
            self.woken.add((dom.id, v.id))
