"""The page table machine, run against the models dressed as a hypervisor, and against ones broken on purpose."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings

from xenlike.testing.machines import pagetypes
from xenlike.testing.machines.driver import Mismatch
from xenlike.testing.machines.model_driver import ModelDriver
from xenlike.testing.models.frames import GLOBAL, L1, PRESENT, RW, WRITABLE
from xenlike.testing.models.pagetypes import PageTypes

TestPageTypesMachine = pagetypes.machine(ModelDriver).TestCase
TestPageTypesMachine.settings = settings(max_examples=15, stateful_step_count=40, deadline=None,
                                         suppress_health_check=list(HealthCheck))


class LinearDriver(ModelDriver):
    """A hypervisor that allows same-level entries."""

    abi = replace(ModelDriver.abi, linear_tables=True)


@pytest.mark.parametrize("driver", [ModelDriver, LinearDriver])
@pytest.mark.parametrize("seed", range(3))
def test_scripts_agree(driver, seed):
    """Choices drawn beforehand would find the models inconsistent, or leave frames behind."""
    assert pagetypes.run_script(driver(), pagetypes.draw_choices(seed, 600)) >= 600


# --- broken hypervisors ---------------------------------------------------------------------------------------------

class UnpinTwice(PageTypes):
    def unpin(self, mfn, domid):
        frame = self.frame(mfn)
        return 0 if frame and frame.owner == domid and not frame.pinned else super().unpin(mfn, domid)


class ForgetsToDropTheOldEntry(PageTypes):
    def put_entry(self, level, entry, table):
        if level == L1 and table.validated:
            return
        super().put_entry(level, entry, table)


class WritableTables(PageTypes):
    def _get_data(self, entry, page_owner):
        rc = super()._get_data(entry, page_owner)
        if rc and entry & RW:
            return super()._get_data(entry & ~RW, page_owner)
        return rc


class NoAdjustment(PageTypes):
    def update_entry(self, table, slot, new, page_owner, *, preserve_ad=False):
        rc = super().update_entry(table, slot, new, page_owner, preserve_ad=preserve_ad)
        if not rc and new & PRESENT:
            table.set_entry(slot, new)
        return rc


class LosesAccessedBits(PageTypes):
    def update_entry(self, table, slot, new, page_owner, *, preserve_ad=False):
        return super().update_entry(table, slot, new, page_owner)


class XenSlotsAreOpen(PageTypes):
    def update_entry(self, table, slot, new, page_owner, *, preserve_ad=False):
        rc = super().update_entry(table, slot, new, page_owner, preserve_ad=preserve_ad)
        return 0 if rc and table.type == 4 and 256 <= slot < 272 else rc


class GlobalRefused(PageTypes):
    def get_entry(self, level, entry, table, page_owner):
        return -22 if entry & GLOBAL and level == L1 and not entry & 4 else \
            super().get_entry(level, entry, table, page_owner)


class GoesOnAfterAnError(PageTypes):
    def mmu_update(self, caller, requests, foreigndom=0x7FF0):
        rc, done = super().mmu_update(caller, requests, foreigndom)
        return (0, 1) if rc == -16 else (rc, done)


class ForgetsTheM2P(PageTypes):
    def populate_physmap(self, caller, domid, pfns, order=0, **options):
        made = super().populate_physmap(caller, domid, pfns, order, **options)
        for mfn in made:
            self.frames[mfn].m2p = (1 << 64) - 1
        return made


class ExchangesMappedFrames(PageTypes):
    def _stealable(self, mfn, domid):
        frame = self.frames.get(mfn)
        return frame is not None and frame.owner == domid and frame.allocated and frame.type != WRITABLE


class DeathForgetsPins(PageTypes):
    def destroy_owner(self, domid):
        lost = [f for f in self.frames.values() if f.pinned and f.owner == domid]
        super().destroy_owner(domid)
        for frame in lost[:1]:
            frame.refs, frame.owner = 1, domid


@pytest.mark.parametrize("broken", [UnpinTwice, ForgetsToDropTheOldEntry, WritableTables, NoAdjustment,
                                    LosesAccessedBits, XenSlotsAreOpen, GlobalRefused, GoesOnAfterAnError,
                                    ForgetsTheM2P, ExchangesMappedFrames, DeathForgetsPins])
def test_a_broken_hypervisor_is_noticed(broken):
    """The machine would pass anything: each of these bugs must show."""
    with pytest.raises(Mismatch):
        for seed in range(4):
            driver = ModelDriver()
            driver.memory = broken(4096)
            driver.grants.memory = driver.memory
            pagetypes.run_script(driver, pagetypes.draw_choices(seed, 800))
