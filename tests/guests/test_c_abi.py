"""The ABI as a C guest meets it: one image, a boot for each of its tests (tests/guests/abitest; the names are XTF's)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from c_images import image

import xenlike

SOURCE = Path(__file__).parent / "abitest"
ROWS = [(kind, name.replace("_", "-")) for kind, name in re.findall(r"^(TEST|CRASH)\((\w+)\)", (SOURCE / "tests.def").read_text(), re.M)]
NAMES = [name for kind, name in ROWS if kind == "TEST"]
CRASHES = {     # and what the reason has to name
    "crash-no-handler": "no handler", "crash-no-stack": "0x", "crash-stack-in-xen": "0x", "crash-stack-not-canonical": "0x",
    "crash-iret-frame": "iret", "crash-iret-no-user": "user", "crash-no-callback": "event",
}
#: What this hypervisor does not offer, and a guest finds out. Any other SKIP is a failure.
SKIPS = {
    "cpuid-faulting": "not offered",
    "xsa-167": "no superpages",
    "xsa-188": "no FIFO event channels",
    "xsa-255": "no grant table version 2",
}


@pytest.fixture(scope="module")
def host():
    with xenlike.Host(clock="virtual", seed=11) as host:
        yield host


def run(host, words, **settings):
    domain = host.create(image(SOURCE), extra=words, **{"memory": "16M", "vcpus": 2, **settings})
    result = domain.wait(timeout=120)
    return result, domain.console.text


def test_the_list_is_whole(host):
    """A test could be in the image and never be run."""
    result, text = run(host, "list")
    assert result.reason == "poweroff" and text.split() == [name for _, name in ROWS]


@pytest.mark.parametrize("name", NAMES)
def test_abi(host, name):
    """The behaviour that the test is named after is not what guests of Xen rely on; the line that it prints says in what."""
    result, text = run(host, name)
    assert text.startswith(f"{name}: "), f"{result.reason}: {result.crash_reason}\n{text}"
    verdict = text.splitlines()[0].removeprefix(f"{name}: ")
    if verdict.startswith("SKIP "):
        assert SKIPS.get(name, "?") in verdict, f"{name} is not to be skipped: {verdict}"
        pytest.skip(verdict.removeprefix("SKIP "))
    assert (verdict, result.reason) == ("PASS", "poweroff"), f"{result.crash_reason}\n{text}"


@pytest.mark.parametrize("name", [name for kind, name in ROWS if kind == "CRASH"])
def test_crash(host, name):
    """A fault that cannot be delivered would not end the domain, or would end more than it, or the reason would not say what it was."""
    result, text = run(host, name)
    assert result.reason == "crash" and text == "it begins\n"
    assert CRASHES[name] in result.crash_reason, result.crash_reason


def test_all_in_one_boot():
    """A test would leave the machine other than it found it: something is not undone that Xen says is; on the real clock, with threads."""
    with xenlike.Host(clock="real", seed=11) as host:
        result, text = run(host, "all", vcpus=5)
        lines = text.splitlines()
        assert [line.partition(":")[0] for line in lines] == NAMES and "FAIL" not in text, text
        assert {line.partition(":")[0] for line in lines if "SKIP" in line} <= set(SKIPS), text
        assert result.reason == "poweroff", result.crash_reason


def test_a_failing_test_fails():
    """The image would report success whatever its tests find."""
    with xenlike.Host(clock="virtual", seed=11) as host:
        result, text = run(host, "xsa-000")
        assert result.reason == "crash" and "name tests" in text
