"""Disk specifications in every form of xl-disk-configuration(5), and virtual device numbers."""

import os

import pytest

from xenlike.toolstack.disk import Disk, parse_disk, parse_vdev, vdev_name
from xenlike.toolstack.errors import SpecError


def disk(spec, **options):
    return parse_disk(spec, directory="/cfg", check_files=False, **options)


def volume(**changes):
    base = dict(target="/dev/vg/guest-volume", vdev="hda", device=768)
    return Disk(**(base | changes))


@pytest.mark.parametrize("spec", [
    "/dev/vg/guest-volume,,hda",
    "/dev/vg/guest-volume,raw,hda,rw",
    "format=raw, vdev=hda, access=rw, target=/dev/vg/guest-volume",
    "raw:/dev/vg/guest-volume,hda,w",
    "phy:/dev/vg/guest-volume,hda,w",
    "phy:vg/guest-volume,hda,w",
    "tap:aio:/dev/vg/guest-volume,hda,w",
    " /dev/vg/guest-volume, raw, hda",
    "access=w,/dev/vg/guest-volume,,hda,",
    ",format=,vdev=hda,target=/dev/vg/guest-volume",
])
def test_these_all_mean_the_same(spec):
    """Wrong if one of the manual's equivalent ways to write a disk is refused or describes another disk."""
    assert disk(spec) == volume()


@pytest.mark.parametrize("spec", [
    "/root/image.iso,,hdc,cdrom",
    "/root/image.iso,,hdc,,cdrom",
    "/root/image.iso,raw,hdc,devtype=cdrom",
    "format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/root/image.iso",
    "raw:/root/image.iso,hdc:cdrom,ro",
    "cdrom,/root/image.iso,raw,hdc,rw",
])
def test_these_all_mean_the_same_cd(spec):
    """Wrong if a CD drive is writable, or one of its forms is misread."""
    assert disk(spec) == volume(target="/root/image.iso", vdev="hdc", device=22 << 8, writable=False, cdrom=True)


@pytest.mark.parametrize("spec", [",hdc:cdrom,r", ",,hdc,cdrom", "vdev=hdc,cdrom", ",empty,hdc,devtype=cdrom"])
def test_an_empty_drive(spec):
    """Wrong if a drive without a disc is refused or gets a target."""
    assert disk(spec) == volume(target=None, vdev="hdc", device=22 << 8, writable=False, cdrom=True, format="empty")


@pytest.mark.parametrize("spec, changes", [
    ("a.img,qcow2,xvda,ro", dict(target="/cfg/a.img", format="qcow2", writable=False)),
    ("qcow:a.img,xvda,r", dict(target="/cfg/a.img", format="qcow", writable=False)),
    ("../x/a.img,,xvda", dict(target="/x/a.img")),
    ("vdev=xvda,target=/a,b=c: d.img ", dict(target="/a,b=c: d.img ")),
    (",,xvda,w,target=a.img,", dict(target="/cfg/a.img")),
    ("a.img,,xvda,backend=store,backendtype=qdisk", dict(target="/cfg/a.img", backend="store", backendtype="qdisk")),
    ("iscsi:iqn.2001-05.com:disk,xvda,w", dict(target="iqn.2001-05.com:disk", script="block-iscsi")),
    ("x/y z,,xvda,script=block-it", dict(target="x/y z", script="block-it")),
    ("a.img,,xvda,no-discard,direct-io-safe,untrusted",
     dict(target="/cfg/a.img", discard=False, direct_io_safe=True, trusted=False)),
    ("a.img,,xvda,specification=virtio", dict(target="/cfg/a.img", specification="virtio")),
])
def test_other_parameters(spec, changes):
    """Wrong if a parameter is dropped, or a special target is cut at a comma, a colon or its trailing space."""
    assert disk(spec) == volume(vdev="xvda", device=51712, **changes)


@pytest.mark.parametrize("spec, says", [
    ("", "names no virtual device"),
    ("a.img,raw", "names no virtual device"),
    ("a.img,raw,,w", "names no virtual device"),
    (",,xvda", "only a CD drive"),
    ("a.img,empty,xvda,cdrom", "has no target"),
    ("a.img,qow2,xvda", "unknown format 'qow2' (did you mean 'qcow2'?)"),
    ("a.img,raw,xvda,x", "unknown access 'x' (rw or w, ro or r)"),
    ("a.img,raw,xvda,w,more", "'more' has no place"),
    ("a.img,raw,xvda,vdev=xvdb", "vdev is given twice"),
    ("a.img,raw,xvda,target=b.img", "target is given twice"),
    ("a.img,raw,xvda,acces=ro", "unknown parameter 'acces' (did you mean 'access'?)"),
    ("a=b.img,raw,xvda", "unknown parameter 'a'"),
    ("/x/a=b.img,raw,xvda", "target=... last"),
    ("a.img,raw,xvda,devtype=tape", "unknown devtype 'tape'"),
    ("a.img,raw,xvda:tape", "unknown devtype 'tape'"),
    ("a.img,raw,xvda,backendtype=nfs", "unknown backendtype"),
    ("fiel:/a.img,xvda,w", "unknown prefix 'fiel:'"),
    ("a.img,raw,vda,w", "'vda' is no virtual device"),
])
def test_mistakes_are_named(spec, says):
    """Wrong if a mistaken specification gives a disk, or an error that does not say which part is wrong."""
    with pytest.raises(SpecError) as info:
        disk(spec)
    assert says in str(info.value)


def test_parameters_without_effect_warn():
    """Wrong if a user believes that a parameter does something which it does not."""
    told = []
    disk("a.img,,xvda,backendtype=phy,direct-io-safe", warn=told.append)
    assert told == ["backendtype has no effect", "direct-io-safe has no effect"]


def test_files_are_looked_at(tmp_path):
    """Wrong if a missing or unusable image is found only when the guest runs."""
    (tmp_path / "a.img").write_bytes(b"")
    assert parse_disk("a.img,,xvda", directory=str(tmp_path)).target == str(tmp_path / "a.img")
    with pytest.raises(SpecError, match=r"file 'b.img' does not exist \(paths are relative to the config file\)"):
        parse_disk("b.img,,xvda", directory=str(tmp_path))
    with pytest.raises(SpecError, match=r"does not exist$"):
        parse_disk(f"{tmp_path}/b.img,,xvda", directory=str(tmp_path))
    with pytest.raises(SpecError, match="'.' is a directory"):
        parse_disk(".,,xvda", directory=str(tmp_path))
    with pytest.raises(SpecError, match="cannot be used"):
        parse_disk("x" * 5000 + ",,xvda", directory=str(tmp_path))


def test_a_file_that_may_not_be_written_is_offered_read_only(tmp_path, monkeypatch):
    """Wrong if a disk to be written fails at its first write instead of at the start."""
    (tmp_path / "a.img").write_bytes(b"")
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)    # root may write every file
    assert not parse_disk("a.img,,xvda,ro", directory=str(tmp_path)).writable
    with pytest.raises(SpecError, match="access=ro"):
        parse_disk("a.img,,xvda", directory=str(tmp_path))


@pytest.mark.parametrize("name, number", [
    ("xvda", 51712), ("xvda1", 51713), ("xvdb", 51728), ("xvdp15", 51967), ("d0", 51712), ("d0p0", 51712),
    ("d1p2", 51730), ("xvdq", (1 << 28) + (16 << 8)), ("xvda16", (1 << 28) + 16), ("xvdz", (1 << 28) + (25 << 8)),
    ("xvdaa", (1 << 28) + (26 << 8)), ("d536p37", (1 << 28) + (536 << 8) + 37),
    ("xvdtq37", (1 << 28) + (536 << 8) + 37), ("d1048575p255", (1 << 29) - 1),
    ("sda", 2048), ("sdb3", 2067), ("sdp15", 2303), ("hda", 768), ("hdb1", 833), ("hdc2", 5634), ("hdd63", 5759),
    ("51712", 51712), ("0xca00", 51712), ("0145000", 51712),
])
def test_device_numbers(name, number):
    """Wrong if a guest sees a disk under another number than on Xen."""
    assert parse_vdev(name) == number


@pytest.mark.parametrize("name", ["", "xvd", "xvdA", "xvda0", "xvda01", "xvda256", "hde", "hda64", "sdq", "sda16",
                                  "vda", "d", "dp1", "d0p", "d1048576", "d0p256", "xvdzzzzz", "xvda-1", "0x", "09",
                                  "0x80000000", "xvda ", "²"])
def test_what_is_no_device(name):
    """Wrong if a slip in a device's name gives some other device."""
    with pytest.raises(SpecError):
        parse_vdev(name)


@pytest.mark.parametrize("number, name", [
    (51712, "xvda"), (51713, "xvda1"), (1 << 28 | 536 << 8 | 37, "xvdtq37"), (2067, "sdb3"), (833, "hdb1"),
    (5634, "hdc2"), (1 << 28, "268435456"), (0, "0"), (3 << 8 | 128, "896"), (1 << 30, "1073741824"),
])
def test_names_of_numbers(number, name):
    """Wrong if a number is shown under a name that means another one."""
    assert vdev_name(number) == name
