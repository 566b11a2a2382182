"""The grant machine, run against the models dressed as a hypervisor, and against ones broken on purpose."""

import pytest
from hypothesis import HealthCheck, settings

from xenlike.testing.machines import grants
from xenlike.testing.machines.driver import Mismatch
from xenlike.testing.machines.model_driver import ModelDriver
from xenlike.testing.models import grants as spec
from xenlike.testing.models.grants import HOST_MAP, GrantModel

TestGrantsMachine = grants.machine(ModelDriver).TestCase
TestGrantsMachine.settings = settings(max_examples=15, stateful_step_count=40, deadline=None,
                                      suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("seed", range(4))
def test_scripts_agree(seed):
    """Choices drawn beforehand would find the models inconsistent, or leave frames, pins or mappings behind."""
    assert grants.run_script(ModelDriver(), grants.draw_choices(seed, 600)) >= 500


# --- broken hypervisors ---------------------------------------------------------------------------------------------

class NeverSetsWriting(GrantModel):
    def _set_word(self, table, ref, word):
        super()._set_word(table, ref, word & ~spec.WRITING if ref < 512 else word)


class ForgetsToUnpin(GrantModel):
    def _settle(self, granter, ref, readonly):
        pass


class UnmapsAnything(GrantModel):
    def _remove(self, caller, vcpu, host_addr, new_addr, mfn, flags):
        return super()._remove(caller, vcpu, host_addr, new_addr, mfn, flags) or not new_addr


class ReadonlyIsIgnored(GrantModel):
    def _pin(self, granter, ref, domid, pins, readonly, *, mapping):
        word = self._word(granter, ref)
        self._set_word(granter, ref, word & ~spec.READONLY)
        result = super()._pin(granter, ref, domid, pins, readonly, mapping=mapping)
        self._set_word(granter, ref, self._word(granter, ref) | word & spec.READONLY)
        return result


class AnybodyMayMap(GrantModel):
    def _pin(self, granter, ref, domid, pins, readonly, *, mapping):
        word = self._word(granter, ref)
        self._set_word(granter, ref, word & ~0xFFFF0000 | domid << 16)
        result = super()._pin(granter, ref, domid, pins, readonly, mapping=mapping)
        self._set_word(granter, ref, self._word(granter, ref) & ~0xFFFF0000 | word & 0xFFFF0000)
        return result


class HostMappingTakesNoType(GrantModel):
    def _hold(self, caller, vcpu, frame, fresh, owner, flags, host_addr):
        types = frame.type_refs
        status = super()._hold(caller, vcpu, frame, fresh, owner, flags, host_addr)
        if not status and flags & HOST_MAP and frame.type_refs > types > 0:
            frame.type_refs -= 1
        return status


class CopiesPastThePage(GrantModel):
    def _copy_bytes(self, source, source_offset, dest, dest_offset, length):
        length = min(length, 4096 - max(source_offset, dest_offset))
        return super()._copy_bytes(source, source_offset, dest, dest_offset, length)


class CopyForgetsItsPin(GrantModel):
    def _claim(self, caller, domid, where, by_ref, pin):
        status, frame = super()._claim(caller, domid, where, by_ref, pin)
        if not status and by_ref:
            self._set_word(self.tables[domid], where, self._word(self.tables[domid], where) | 1 << 15)
        return status, frame


class DeathKeepsPins(GrantModel):
    def destroy_domain(self, domid):
        self.tables[domid].dead = True


class SwapsPinnedEntries(GrantModel):
    def swap_grant_ref(self, caller, a, b):
        status = super().swap_grant_ref(caller, a, b)
        return 0 if status == spec.EAGAIN else status


@pytest.mark.parametrize("broken", [NeverSetsWriting, ForgetsToUnpin, UnmapsAnything, ReadonlyIsIgnored, AnybodyMayMap,
                                    HostMappingTakesNoType, CopiesPastThePage, CopyForgetsItsPin, DeathKeepsPins,
                                    SwapsPinnedEntries])
def test_a_broken_hypervisor_is_noticed(broken):
    """The machine would pass anything: each of these bugs must show."""
    with pytest.raises(Mismatch):
        for seed in range(4):
            driver = ModelDriver()
            driver.grants = broken(driver.memory)
            grants.run_script(driver, grants.draw_choices(seed, 800))
