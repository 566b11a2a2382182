"""The events machine, run against the models dressed as a hypervisor, and against hypervisors broken on purpose."""

import pytest
from hypothesis import HealthCheck, settings

from xenlike.testing.machines import events
from xenlike.testing.machines.driver import Mismatch
from xenlike.testing.machines.model_driver import ModelDriver
from xenlike.testing.models.events import FREE, EventModel

TestEventsMachine = events.machine(ModelDriver, check_all_every=64).TestCase
TestEventsMachine.settings = settings(max_examples=15, stateful_step_count=40, deadline=None,
                                      suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("seed", range(4))
def test_scripts_agree(seed):
    """Choices drawn beforehand would be a different machine from Hypothesis's, or find the models inconsistent."""
    choices = events.draw_choices(seed, 1500, deaths=True)
    assert events.run_script(ModelDriver(), choices) >= 1400


def test_scripts_are_repeatable():
    """A failure could not be reproduced from its seed."""
    assert events.draw_choices(7, 100) == events.draw_choices(7, 100) != events.draw_choices(8, 100)


# --- broken hypervisors: each of these is a bug somebody has written once -------------------------------------------

class ForgetsPendingOnClose(EventModel):
    def _close(self, dom, number, *, guest):
        pending = dom.pending
        rc = super()._close(dom, number, guest=guest)
        dom.pending = pending
        return rc


class ClosesBothEnds(EventModel):
    def _close(self, dom, number, *, guest):
        port = self._port(dom, number)
        peer = (port.remote_dom, port.remote_port) if port and port.state == 2 else None
        rc = super()._close(dom, number, guest=guest)
        if peer and peer[0] in self.domains:
            self.domains[peer[0]].ports[peer[1]].state = FREE
        return rc


class BinderNotNotified(EventModel):
    def bind_interdomain(self, caller, remote_domid, remote_port):
        rc, port = super().bind_interdomain(caller, remote_domid, remote_port)
        if not rc:
            self.domains[caller].pending &= ~(1 << port)
        return rc, port


class PollHonoursTheMask(EventModel):
    def _set_pending(self, dom, number):
        polls = [v.poll for v in dom.vcpus]
        if dom.mask >> number & 1:
            for v in dom.vcpus:
                v.poll = None
        super()._set_pending(dom, number)
        for v, poll in zip(dom.vcpus, polls):
            if v.blocked:
                v.poll = poll


class UnmaskForgetsToRaise(EventModel):
    def unmask(self, caller, number):
        dom = self.domains[caller]
        if self._port(dom, number) is None:
            return super().unmask(caller, number)
        dom.mask &= ~(1 << number)
        return 0


class DeathLeaksPorts(EventModel):
    def destroy_domain(self, domid):
        dom = self.domains[domid]
        dom.ports = dom.ports[:2]
        super().destroy_domain(domid)


class SendOnVirqWorks(EventModel):
    def send(self, caller, number):
        rc = super().send(caller, number)
        port = self._port(self.domains[caller], number)
        return 0 if port and port.state == 4 else rc


class PollOutlivesItsSleep(EventModel):
    def __init__(self):
        super().__init__()
        self.stale = {}

    def poll(self, caller, vcpu, ports):
        rc = super().poll(caller, vcpu, ports)
        v = self.domains[caller].vcpus[vcpu]
        self.stale[caller, vcpu] = v.poll if v.blocked else None
        return rc

    def block(self, caller, vcpu):
        rc = super().block(caller, vcpu)
        v = self.domains[caller].vcpus[vcpu]
        v.poll = self.stale.get((caller, vcpu)) if v.blocked else None
        return rc


@pytest.mark.parametrize("broken", [ForgetsPendingOnClose, ClosesBothEnds, BinderNotNotified, PollHonoursTheMask,
                                    PollOutlivesItsSleep, UnmaskForgetsToRaise, DeathLeaksPorts, SendOnVirqWorks])
def test_a_broken_hypervisor_is_noticed(broken):
    """The machine would pass anything: each of these bugs must show within a few thousand steps."""
    with pytest.raises(Mismatch):
        for seed in range(6):
            driver = ModelDriver()
            driver.events = broken()
            events.run_script(driver, events.draw_choices(seed, 1500, deaths=True))
