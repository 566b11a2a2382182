"""Configuration files as people and tools write them: each must read, and say what its author meant."""

from pathlib import Path

import pytest

from xenlike.toolstack import load_config

CORPUS = Path(__file__).parent / "xlcfg_corpus"
MIB = 1 << 20


def described(config):
    """The parts of a configuration that the files of the corpus differ in."""
    return {
        "type": config.type, "memory": config.memory // MIB, "maxmem": config.maxmem // MIB,
        "vcpus": (config.vcpus, config.maxvcpus), "line": config.command_line,
        "disk": [(d.target, d.device, d.format, d.writable) for d in config.disk],
        "vif": [v.bridge for v in config.vif],
    }


EXPECTED = {
    "debian-pv.cfg": dict(
        memory=1024, maxmem=2048, vcpus=(2, 2), line="root=/dev/xvda2 ro elevator=noop console=hvc0", vif=["br0"],
        disk=[("/dev/vg0/mail-disk", 51714, "raw", True), ("/dev/vg0/mail-swap", 51713, "raw", True)]),
    "cluster-manager.cfg": dict(
        memory=512, maxmem=512, line="root=/dev/sda1 ro", vif=["xen-br0"],
        disk=[("/var/run/instance-disks/instance1:0", 2048, "raw", True), ("/srv/instance1.swap", 2064, "raw", True)]),
    "windows-hvm.cfg": dict(
        type="hvm", memory=4096, maxmem=4096, vcpus=(4, 4), vif=["xenbr0"],
        disk=[("/srv/xen/win10.img", 768, "raw", True), ("/srv/iso/win10.iso", 5632, "raw", False),
              (None, 5696, "empty", False)]),
    "unikernel.cfg": dict(type="pvh", line="--ipv4=192.0.2.7/24 -l '*:debug'", vif=["br0"]),
    "test-framework.cfg": dict(memory=128, maxmem=128),
    "mini-os.cfg": dict(vif=["xenbr0"]),
    "pygrub.cfg": dict(
        memory=1024, maxmem=2048, vcpus=(2, 8), vif=["lan", "dmz"],
        disk=[("/dev/vg/db1", 51712, "raw", True), ("/dev/vg/db1-wal", 51728, "raw", True),
              ("/srv/backup,2024.img", 51744, "raw", False)]),
    "numa-nested.cfg": dict(type="hvm", memory=2048, maxmem=2048, vcpus=(8, 8),
                            disk=[("/srv/numa.qcow2", 768, "qcow2", True)]),
    "append.cfg": dict(
        memory=256, maxmem=256, line="console=hvc0 quiet",
        disk=[(f"{CORPUS}/root.img", 51712, "raw", True), (f"{CORPUS}/swap.img", 51728, "raw", True)]),
    "cpuid.cfg": dict(),
    "python-guest.cfg": dict(memory=4, maxmem=4, vcpus=(2, 2)),
    "one-line.cfg": dict(memory=64, maxmem=64, vif=["xenbr0"],
                         disk=[(f"{CORPUS}/a", 51712, "raw", True), (f"{CORPUS}/b", 51728, "raw", True)]),
    "no-final-newline.cfg": dict(),
}
DEFAULTS = dict(type="pv", memory=32, maxmem=32, vcpus=(1, 1), line="", disk=[], vif=[])


def test_the_corpus_is_all_expected():
    """Wrong if a file lies in the corpus that no test reads."""
    assert {path.name for path in CORPUS.glob("*.cfg")} == set(EXPECTED)


@pytest.mark.parametrize("file", sorted(EXPECTED))
def test_reads_as_meant(file):
    """Wrong if a file that works with xl is refused, or describes another domain."""
    config, _ = load_config(CORPUS / file, check_files=False)
    assert described(config) == DEFAULTS | EXPECTED[file]


@pytest.mark.parametrize("file, keys", [
    ("debian-pv.cfg", []), ("pygrub.cfg", ["bootloader_args"]), ("test-framework.cfg", ["loader"]), ("cpuid.cfg", []),
    ("numa-nested.cfg", ["vnuma"]), ("cluster-manager.cfg", ["vif"]),
    ("windows-hvm.cfg", ["acpi", "apic", "boot", "builder", "hap", "localtime", "pci", "serial", "usb", "usbdevice",
                         "vif", "viridian", "vnc", "vnclisten", "vncpasswd"]),
])
def test_warns_of_just_what_has_no_effect(file, keys):
    """Wrong if a key without effect passes silently, or a good one is complained of."""
    assert sorted(warning.key for warning in load_config(CORPUS / file, check_files=False)[1]) == keys
