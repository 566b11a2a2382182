"""The C core beside its independent models: events, grants, page types. One wrong answer or count is a defect in one of them.

Each example is a fresh host; after each hypercall every TLB is checked (core_driver).
"""

import os

import pytest
from hypothesis import HealthCheck, settings

from xenlike.testing.machines import events, grants, pagetypes
from xenlike.testing.machines.core_driver import CoreDriver

EXAMPLES = int(os.environ.get("XENLIKE_EXAMPLES", "30"))
profile = settings(max_examples=EXAMPLES, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck))

TestEvents = events.machine(CoreDriver).TestCase
TestGrants = grants.machine(CoreDriver).TestCase
TestPageTypes = pagetypes.machine(CoreDriver).TestCase
TestEvents.settings = TestGrants.settings = TestPageTypes.settings = profile


@pytest.mark.parametrize("seed", range(6))
def test_event_scripts(seed):
    """Long histories, with choices drawn beforehand, would end in another state than the model's."""
    driver = CoreDriver()
    try:
        events.run_script(driver, events.draw_choices(seed, 2000, deaths=True))
    finally:
        driver.close()
