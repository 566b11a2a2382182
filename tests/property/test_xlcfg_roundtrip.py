"""Configurations at random: what is written reads back, and no bytes do worse than a ``ConfigError``."""

import os.path
import string

from hypothesis import example, given, settings
from hypothesis import strategies as st

from xenlike.toolstack import ConfigError, SpecError, config_from_values, parse_config, parse_disk, parse_vif
from xenlike.toolstack import xlcfg
from xenlike.toolstack.config import FOREIGN_KEYS, KEYS
from xenlike.toolstack.cpus import parse_cpu_list, parse_cpuid_features, parse_cpuid_leaf
from xenlike.toolstack.disk import parse_vdev, vdev_name
from xenlike.toolstack.sizes import format_size, parse_integer, parse_size
from xenlike.toolstack.vif import parse_rate

def patient(**options):
    """Hypothesis settings without a deadline: how long an example takes says only how busy the machine is."""
    return settings(deadline=None, **options)


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
keys = st.from_regex(r"[a-z][._0-9a-z]{0,8}", fullmatch=True)
scalars = st.one_of(text, st.integers(-2**63, 2**63))
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4), max_leaves=12)


def plain(value):
    return [plain(v) for v in value.items] if isinstance(value, xlcfg.ListValue) else value.text


def expected(value):
    return [expected(v) for v in value] if isinstance(value, list) else str(value)


@given(st.dictionaries(keys, values, max_size=6))
@patient()
def test_dump_reads_back(settings_):
    """Wrong if some string, number or list cannot be written in the language, or reads back as another."""
    document = xlcfg.parse(xlcfg.dump(settings_), "t.cfg")
    read = {key: plain(setting.value) for key, setting in document.settings.items()}
    assert read == {key: expected(value) for key, value in settings_.items()}
    assert document.warnings == []


blank = st.sampled_from(["", " ", "\t", "  \t "])
broken = st.sampled_from(["", "\n", " \n\t", " # a 'comment', with [ everything ] = in it\n", "\n\n"])


@st.composite
def statements(draw, value):
    """One way of many to write ``value``: quotes, white space, line breaks and comments are free within a list."""
    if isinstance(value, int) and value >= 0:
        return draw(st.sampled_from([str(value), hex(value), f"'{value}'"]))
    if not isinstance(value, list):
        written = xlcfg.dump({"k": value}).removeprefix("k = ").rstrip("\n")
        inner = written[1:-1]
        return f"'{inner}'" if draw(st.booleans()) and "'" not in inner else written
    parts = [draw(broken) + draw(statements(item)) + draw(broken) for item in value]
    comma = "," + draw(broken) if parts and draw(st.booleans()) else ""
    return "[" + draw(broken) + ",".join(parts) + comma + "]"


@given(st.data(), st.dictionaries(keys, values, max_size=5))
@patient()
def test_any_layout_means_the_same(data, settings_):
    """Wrong if white space, comments, quotes or line breaks change a value."""
    source = ""
    for key, value in settings_.items():
        end = data.draw(st.sampled_from(["\n", ";", " ; \n", " # note\n", "\n\n;"]))
        source += key + data.draw(blank) + "=" + data.draw(blank) + data.draw(statements(value)) + end
    document = xlcfg.parse(source, "t.cfg")
    read = {key: plain(s.value) for key, s in document.settings.items()}
    assert list(read) == list(settings_)
    for key, value in settings_.items():
        assert _same(read[key], value)


def _same(read, value):
    if isinstance(value, list):
        return len(read) == len(value) and all(map(_same, read, value))
    return parse_integer(read) == value if isinstance(value, int) else read == value


sizes = st.integers(1, 1 << 16)
names = st.from_regex(r"[A-Za-z][A-Za-z0-9._+-]{0,20}", fullmatch=True).filter(lambda n: n not in ("Xen", "Domain-0"))
targets = st.text(string.ascii_letters + string.digits + "/._- ,=:", min_size=1, max_size=12).map(
    lambda t: "/" + t.rstrip(","))
actions = st.sampled_from(["destroy", "restart", "rename-restart", "preserve", "coredump-destroy", "coredump-restart"])


@st.composite
def domains(draw):
    """The settings of a valid domain, as Python values."""
    vcpus, memory = draw(st.integers(1, 64)), draw(sizes)
    vdevs = draw(st.lists(st.integers(0, 300), unique=True, max_size=4))
    optional = {
        "maxmem": st.integers(memory, 1 << 20), "maxvcpus": st.integers(vcpus, 128), "cap": st.integers(0, 100 * vcpus),
        "cpu_weight": st.integers(1, 65535), "cpus": st.sampled_from(["all", "0-3,^1", ["0", "1-2"]]),
        "on_crash": actions, "on_reboot": actions, "extra": text, "root": text, "nomigrate": st.booleans(),
        "tsc_mode": st.sampled_from(["default", "native", "always_emulate"]), "max_grant_frames": st.integers(1, 1024),
        "max_event_channels": st.integers(1, 131071), "uuid": st.uuids().map(str),
        "vif": st.lists(st.sampled_from(["", "bridge=br0", "rate=1MB/s,ip=192.0.2.1", "mtu=9000"]), max_size=3),
    }
    chosen = draw(st.fixed_dictionaries({"name": names}, optional=optional))
    return chosen | {
        "kernel": draw(st.sampled_from(["/g/guest.py:Web", "/boot/vmlinuz"])), "vcpus": vcpus,
        "memory": draw(st.sampled_from([memory, f"{memory}M", f"{memory * 1024}K"])),
        "disk": [f"format=raw,access={draw(st.sampled_from(['r', 'w', 'ro', 'rw']))},vdev=d{number},"
                 f"target={draw(targets)}" for number in vdevs],
    }


@given(domains(), st.integers(0, 5))
@patient()
def test_a_file_means_what_the_values_mean(settings_, seed):
    """Wrong if a domain described in a file differs from the same domain described by a program."""
    config, warnings = config_from_values(settings_, check_files=False, seed=seed)
    again, _ = parse_config(xlcfg.dump(settings_), "t.cfg", check_files=False, seed=seed)
    overridden, _ = parse_config("", "t.cfg", [xlcfg.dump({k: v}).rstrip("\n") for k, v in settings_.items()],
                                 check_files=False, seed=seed)
    assert config == again == overridden
    surplus = isinstance(settings_.get("cpus"), list) and config.maxvcpus < 2
    assert [warning.key for warning in warnings] == (["cpus"] if surplus else [])
    assert config.memory == parse_size(settings_["memory"]) <= config.maxmem
    assert config.vcpus <= config.maxvcpus and [d.target for d in config.disk] == [
        target_path(spec) for spec in settings_["disk"]]
    assert len({vif.mac for vif in config.vif}) == len(config.vif)


def target_path(spec):
    """What target= in ``spec`` names once dots and doubled slashes are gone."""
    return os.path.abspath(spec.partition("target=")[2])


fragments = st.sampled_from([
    *KEYS, *sorted(FOREIGN_KEYS)[:5], "builder", " = ", "=", "+=", "[", "]", "[ ", ", ", ",", ";", "\n", "\r\n", "'",
    '"', "\\", "\\x", "#", "0", "0x", "08", "1", "-1", "16M", "'16M'", "'a.img,raw,xvda,w'", "'target='",
    "''", "[]", "'pv'",
    "'guest.py:Web'", "\x00", "\xff", "\u00e9", "name='a'\n", "kernel='g.py:A'\n", "true", "A", "'host,'", "'1:eax='",
]).map(lambda s: s.encode("latin-1"))
soup = st.lists(st.one_of(fragments, st.binary(max_size=3)), max_size=25).map(b"".join)


def _harmless(parse, *arguments):
    try:
        parse(*arguments)
    except (ConfigError, SpecError) as error:
        assert str(error) and "\n" not in str(error)


@given(st.one_of(st.binary(max_size=200), soup))
@example(b"a=" + b"[" * 100_000)
@example(b"memory=" + b"9" * 100_000)
@example(b"name='" + b"\\" * 100_001)
@example(b"x" * 100_000 + b"=1\n")
@patient(max_examples=300)
def test_any_bytes_parse_or_give_a_config_error(data):
    """Wrong if some file ends in another exception, or in an error that is not one line."""
    _harmless(lambda: parse_config(data, "t.cfg", check_files=False))
    _harmless(lambda: parse_config(b"name='a'\nkernel='g.py:A'\n" + data, "t.cfg"))


@given(st.text(max_size=40), st.sampled_from(sorted(KEYS)))
@patient()
def test_any_text_as_a_value_or_a_word(value, key):
    """Wrong if some value of some key, quoted or given on the command line, ends in another exception."""
    base = "name='a'\nkernel='g.py:A'\n"
    _harmless(lambda: parse_config(base, "t.cfg", [f"{key}={value}"]))
    _harmless(lambda: parse_config(base, "t.cfg", [value]))
    _harmless(lambda: config_from_values({"name": "a", "kernel": "g.py:A", key: value}))
    _harmless(lambda: config_from_values({"name": "a", "kernel": "g.py:A", key: [value]}))


pieces = st.sampled_from([
    "target=", "vdev=", "xvda", "raw", ",", ":", "=", " ", "phy:", "nbd:", "hdc:cdrom", "cdrom", "w", "/x", "all", "^1",
    "node:", "host", "1:eax=", "mac=", "00:16:3e:00:00:01", "rate=", "1MB/s", "@1s", "0", "d1p", "\u00b2", "\udc80",
])


@given(st.one_of(st.text(max_size=40), st.lists(pieces, max_size=12).map("".join)))
@patient()
def test_specifications_never_do_worse_than_their_error(spec):
    """Wrong if some value ends in another exception in a command that has no file to blame."""
    for parse in (parse_disk, parse_vif, parse_cpu_list, parse_cpuid_features, parse_cpuid_leaf, parse_vdev, parse_rate,
                  parse_integer, parse_size):
        _harmless(parse, spec)


@given(st.integers(0, 2**31 - 1) | st.integers(51712, 51967) | st.integers(1 << 28, (1 << 29) - 1))
@patient()
def test_device_names_and_numbers_are_inverse(number):
    """Wrong if a device is listed under a name that means another number."""
    assert parse_vdev(vdev_name(number)) == number


@given(st.sampled_from([("xvd", 2000, 255), ("sd", 15, 15), ("hd", 3, 63)]), st.data())
@patient()
def test_every_name_comes_back(family, data):
    """Wrong if a valid name turns into a number that is listed under another name."""
    prefix, disks, partitions = family
    disk, partition = data.draw(st.integers(0, disks)), data.draw(st.integers(0, partitions))
    letters, rest = "", disk
    while rest >= 0:
        letters, rest = chr(97 + rest % 26) + letters, rest // 26 - 1
    name = f"{prefix}{letters}{partition or ''}"
    assert vdev_name(parse_vdev(name)) == name


@given(st.integers(0, 1 << 32).map(lambda pages: pages * 4096))
@patient()
def test_sizes_read_back(size):
    """Wrong if a size is shown in a way that means another amount."""
    assert parse_size(format_size(size)) == size
