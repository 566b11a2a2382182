"""The values that have a syntax of their own: sizes, numbers, MAC addresses, rates, interfaces, CPU lists, CPUID."""

import pytest

from xenlike.toolstack.cpus import CpuidLeaf, parse_cpu_list, parse_cpuid_features, parse_cpuid_leaf
from xenlike.toolstack.errors import SpecError
from xenlike.toolstack.sizes import format_size, parse_integer, parse_size
from xenlike.toolstack.vif import Rate, Vif, derive_mac, parse_mac, parse_rate, parse_vif


@pytest.mark.parametrize("text, number", [("0", 0), ("12", 12), ("0x1F", 31), ("0X1f", 31), ("017", 15), (" -5", -5),
                                          ("+7", 7), ("00", 0)])
def test_integers_are_read_as_by_strtol(text, number):
    """Wrong if a number counts differently here than under xl."""
    assert parse_integer(text) == number


@pytest.mark.parametrize("text", ["", " ", "x", "08", "0x", "12ab", "1 ", "1.5", "--1", "1_0", "٣", "9" * 5000])
def test_what_is_no_integer(text):
    """Wrong if half a number is taken, or a huge one costs time or another exception."""
    with pytest.raises(SpecError, match="is not a number"):
        parse_integer(text)


@pytest.mark.parametrize("value, size", [
    (16, 16 << 20), ("16", 16 << 20), ("0x10", 16 << 20), ("16M", 16 << 20), ("16m", 16 << 20), ("16 MiB", 16 << 20),
    ("1G", 1 << 30), ("1gb", 1 << 30), ("512K", 512 << 10), ("2T", 2 << 40), (0, 0),
])
def test_sizes(value, size):
    """Wrong if a memory size means another amount; bare numbers are MiB as in xl."""
    assert parse_size(value) == size


@pytest.mark.parametrize("value", ["", "M", "1.5G", "-1", "1P", "16MM", "5K", -1, "0x", "9" * 100])
def test_what_is_no_size(value):
    """Wrong if an amount that cannot be meant is taken."""
    with pytest.raises(SpecError):
        parse_size(value)


def test_a_size_is_shown_as_one_would_write_it():
    """Wrong if messages show byte counts nobody can read, or sizes that do not read back."""
    assert [format_size(n) for n in (16 << 20, 1 << 30, 1536 << 10, 4096, 0)] == ["16M", "1G", "1536K", "4K", "0K"]


def test_interfaces():
    """Wrong if an interface's parameters are lost, or the empty specification is not an interface with defaults."""
    assert parse_vif("") == Vif()
    spec = "mac=00:16:3E:1:2:3, bridge=br0,,ip=10.0.0.1 10.0.0.2,vifname=web0,backend=net,mtu=9000,devid=2"
    assert parse_vif(spec) == \
        Vif(mac="00:16:3e:01:02:03", bridge="br0", ip="10.0.0.1 10.0.0.2", vifname="web0", backend="net", mtu=9000,
            devid=2)
    assert parse_vif("rate=10Mb/s,type=vif").rate == Rate(62500, 50000)


@pytest.mark.parametrize("spec, says", [
    ("birdge=br0", "unknown parameter 'birdge' (did you mean 'bridge'?)"), ("up", "is no key=value pair"),
    ("mac", "mac needs a value"), ("trusted=1", "trusted takes no value"), ("ip=1,ip=2", "ip is given twice"),
    ("mac=00:16:3e:00:00", "is no MAC address"), ("mac=01:00:00:00:00:00", "multicast"),
    ("mac=00:00:00:00:00:00", "no interface's address"), ("mac=00-16-3e-00-00-01", "is no MAC address"),
    ("type=e1000", "unknown type"), ("mtu=12", "mtu 12 is out of range (68 to 65517)"),
])
def test_mistakes_in_interfaces(spec, says):
    """Wrong if a mistaken interface is taken, or the error hides which part is mistaken."""
    with pytest.raises(SpecError) as info:
        parse_vif(spec)
    assert says in str(info.value)


def test_unused_parameters_of_interfaces_warn():
    """Wrong if a user believes that a parameter does something which it does not."""
    told = []
    parse_vif("model=e1000,script=vif-route", warn=told.append)
    assert told == ["model has no effect", "script has no effect"]


@pytest.mark.parametrize("text, rate", [
    ("250KB/s", Rate(12500, 50000)), ("1MB/s@20ms", Rate(20000, 20000)), ("8Gb/s@1s", Rate(10**9, 10**6)),
    ("100B/s@1", Rate(100, 10**6)), ("1MB/s@20m", Rate(20000, 20000)), ("1GB/s@5us", Rate(5000, 5)),
])
def test_rates(text, rate):
    """Wrong if a bandwidth limit is not the one the manual's examples give."""
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "10", "10Mb", "Mb/s", "0B/s", "1B/s@1us", "1MB/s@0", "1MB/s@5000s", "1TB/s",
                                  "08B/s"])
def test_what_is_no_rate(text):
    """Wrong if an unusable limit is taken, such as one that never lets a byte through."""
    with pytest.raises(SpecError):
        parse_rate(text)


def test_derived_addresses():
    """Wrong if an address is not stable, not Xen's, shared between interfaces or domains, or one that is taken."""
    first = derive_mac(1, "web", 0)
    assert first == derive_mac(1, "web", 0) and parse_mac(first) == first and first.startswith("00:16:3e:")
    assert len({first, derive_mac(2, "web", 0), derive_mac(1, "db", 0), derive_mac(1, "web", 1)}) == 4
    assert derive_mac(1, "web", 0, taken={first}) not in (first, None)


@pytest.mark.parametrize("text, chosen", [
    ("all", {0, 1, 2, 3, 4, 5, 6, 7}), ("0-3,5,^1", {0, 2, 3, 5}), ("all,^7", {0, 1, 2, 3, 4, 5, 6}),
    ("nodes:0-1,^node:1", {0, 1, 2, 3}), ("1,node:1,^6", {1, 4, 5, 7}), ("^1,0-2", {0, 1, 2}), ("9,2", {2}),
    ("nodes:all", {0, 1, 2, 3, 4, 5, 6, 7}), (" 1 , 2 ", {1, 2}),
])
def test_cpu_lists(text, chosen):
    """Wrong if vCPUs are pinned to other CPUs than under xl (two nodes of four CPUs)."""
    nodes = {0: frozenset(range(4)), 1: frozenset(range(4, 8))}
    cpus = parse_cpu_list(text)
    assert cpus.select(8, nodes=nodes) == chosen
    assert parse_cpu_list(str(cpus)) == cpus


@pytest.mark.parametrize("text", ["", ",", "x", "3-1", "1-", "-1", "^all", "^1", "1,^1", "4096", "0-99999999999",
                                  "node:", "1 2"])
def test_what_is_no_cpu_list(text):
    """Wrong if a list that leaves no CPU, or is no list, is taken."""
    with pytest.raises(SpecError):
        parse_cpu_list(text)


def test_cpuid():
    """Wrong if one of the two forms of CPUID policies loses a bit."""
    bits = "x" * 31 + "0"
    assert parse_cpuid_features("host,tm=0,family=0x6").features == (("tm", "0"), ("family", "0x6"))
    assert parse_cpuid_leaf(f"7,0:ebx={bits},ecx={bits}") == CpuidLeaf(7, 0, (("ebx", bits), ("ecx", bits)))
    assert parse_cpuid_leaf(f"0x80000001:edx={bits}").leaf == 0x80000001
    for text in ("tm=0", "host,tm", "host,tm=2", "host,T=1"):
        with pytest.raises(SpecError):
            parse_cpuid_features(text)
    for text in ("1", "1:", "x:eax=" + bits, "1:efx=" + bits, "1:eax=" + bits[1:], f"{1 << 32}:eax={bits}"):
        with pytest.raises(SpecError):
            parse_cpuid_leaf(text)
