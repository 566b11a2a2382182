"""Domain configurations: types, ranges, defaults, files, what keys say about each other, what this version can do."""

import pickle
import uuid
from dataclasses import fields
from pathlib import Path

import pytest

from xenlike.toolstack import (ConfigError, DomainConfig, KernelSpec, check_supported, config_from_values, image_config, load_config, name_for,
                               parse_config)
from xenlike.toolstack.config import FOREIGN_KEYS, KEYS

MINIMAL = 'name = "web"\nkernel = "guest.py:Web"\n'


@pytest.fixture
def place(tmp_path):
    """A directory with a guest, an image, and a function that writes web.cfg there and loads it."""
    (tmp_path / "guest.py").write_text("class Web: pass\n")
    (tmp_path / "root.img").write_bytes(b"\0" * 512)

    def load(text, *overrides, **options):
        (tmp_path / "web.cfg").write_text(text)
        return load_config(tmp_path / "web.cfg", overrides, **options)
    load.path = tmp_path
    return load


def config(text, *overrides, **options):
    return parse_config(MINIMAL + text, "/cfg/web.cfg", overrides, check_files=False, **options)[0]


def warned(text, *overrides):
    return [str(w) for w in parse_config(MINIMAL + text, "web.cfg", overrides, check_files=False)[1]]


def failure(text, *overrides, prefix=MINIMAL):
    with pytest.raises(ConfigError) as info:
        parse_config(prefix + text, "web.cfg", overrides, check_files=False)
    return str(info.value)


def test_the_table_and_the_type_agree():
    """Wrong if a key is parsed and then lost, or a field can never be set."""
    assert [f.name for f in fields(DomainConfig)] == [*KEYS, "source"]
    assert not FOREIGN_KEYS & set(KEYS)


def test_defaults(place):
    """Wrong if a configuration with two lines does not describe a whole domain, or other than xl's defaults."""
    got, warnings = place(MINIMAL)
    assert warnings == []
    assert got.kernel == KernelSpec("python", place.path / "guest.py", "Web")
    assert (got.type, got.memory, got.maxmem, got.vcpus, got.maxvcpus) == ("pv", 32 << 20, 32 << 20, 1, 1)
    assert (got.on_poweroff, got.on_reboot) == ("destroy", "restart")
    assert (got.on_crash, got.on_watchdog) == ("destroy", "destroy")
    assert (got.cpu_weight, got.cap, got.pool, got.max_event_channels) == (256, 0, "Pool-0", 1023)
    assert (got.max_grant_frames, got.max_maptrack_frames, got.tsc_mode, got.nomigrate) == (64, 1024, "default", False)
    assert got.disk == got.vif == got.channel == got.p9 == got.cpus == ()
    assert got.command_line == "" and check_supported(got) == []


def test_everything_at_once():
    """Wrong if a key's value does not arrive, typed, in its field."""
    got = config("""
        type = 'pvh'
        ramdisk = "initrd.img"; cmdline = "console=hvc0"
        memory = "64M"; maxmem = 128; vcpus = 2; maxvcpus = 0x4
        cpus = "0-3,^1"; cpus_soft = [ "1", 2 ]
        cpu_weight = 512; cap = 150; pool = "fast"
        uuid = "3A7F0E52-1b6c-4d3e-9f80-2c5d1e4b7a96"
        on_poweroff = "preserve"; on_reboot = "rename-restart"; on_crash = "coredump-destroy"; on_watchdog = "restart"
        disk = [ "a.img,raw,xvda,w", "b.iso,,xvdb,cdrom" ]
        vif = [ "", "mac=00:16:3e:00:00:01" ]
        channel = [ "name=org.example.1,connection=socket,path=ch.sock" ]
        p9 = [ "tag=share,path=/srv,security_model=none" ]
        max_grant_frames = 4; max_maptrack_frames = 0; max_grant_version = 1; max_event_channels = 31
        nomigrate = 1; tsc_mode = "native"; cpuid = "host,avx=0"
    """)
    assert got.type == "pvh" and got.ramdisk == Path("/cfg/initrd.img") and got.command_line == "console=hvc0"
    assert (got.memory, got.maxmem, got.vcpus, got.maxvcpus) == (64 << 20, 128 << 20, 2, 4)
    assert [str(c) for c in got.cpus] == ["0-3,^1"] * 4 and [str(c) for c in got.cpus_soft] == ["1", "2"]
    assert (got.cpu_weight, got.cap, got.pool) == (512, 150, "fast")
    assert got.uuid == uuid.UUID("3a7f0e52-1b6c-4d3e-9f80-2c5d1e4b7a96")
    assert (got.on_poweroff, got.on_reboot, got.on_crash, got.on_watchdog) == (
        "preserve", "rename-restart", "coredump-destroy", "restart")
    assert [(d.target, d.device, d.writable) for d in got.disk] == [("/cfg/a.img", 51712, True),
                                                                     ("/cfg/b.iso", 51728, False)]
    assert [v.devid for v in got.vif] == [0, 1] and got.vif[1].mac == "00:16:3e:00:00:01"
    assert got.channel[0].path == Path("/cfg/ch.sock") and got.p9[0].path == Path("/srv")
    assert (got.max_grant_frames, got.max_maptrack_frames) == (4, 0)
    assert (got.max_grant_version, got.max_event_channels) == (1, 31)
    assert got.nomigrate is True and got.tsc_mode == "native" and got.cpuid.features == (("avx", "0"),)


@pytest.mark.parametrize("text, says", [
    ("memory = '16X'", "web.cfg:3: memory: '16X' is not an amount of memory (write a number of MiB, or a string with a "
                       'unit: "512K", "16M", "1G")'),
    ("memory = 0", "memory: '0' is out of range (a domain has 1M to 16T"),
    ("memory = '512K'", "memory: '512K' is out of range"),
    ("memory = '99999999G'", "memory: '99999999G' is out of range"),
    ("memory = [ 16 ]", "memory: is a list but should be a single value"),
    ("memory = 64\nmaxmem = 32", "web.cfg:4: maxmem: 32M is less than memory, 64M (raise maxmem or lower memory)"),
    ("vcpus = 4\n\nmaxvcpus = 2", "web.cfg:5: maxvcpus: 2 is less than vcpus, 4"),
    ("vcpus = 0", "vcpus: 0 is out of range (1 to 8192)"),
    ("vcpus = 'two'", "vcpus: 'two' is not a number"),
    ("vcpus = 1; vcpus += 1", "vcpus: += cannot be used with a number"),
    ("cpu_weight = 65536", "cpu_weight: 65536 is out of range (1 to 65535)"),
    ("cap = 101", "cap: 101 is more than 1 vCPUs can use (0 to 100; 100 is one CPU)"),
    ("cpus = '3-1'", "cpus: '3-1' runs backwards (1-3)"),
    ("cpus = [\n'1',\n'x' ]", "web.cfg:5: cpus: 'x' is no CPU or range"),
    ("type = 'vm'", "type: unknown value 'vm'"),
    ("uuid = '1234'", "uuid: '1234' is no UUID"),
    ("on_crash = 'restat'", "on_crash: unknown value 'restat' (did you mean 'restart'?)"),
    ("disk = 'a.img,,xvda'", "disk: is a single value but should be a list (write [ 'disk.img,raw,xvda,rw' ])"),
    ("disk = [ 'a.img,,xvda',\n [ 'b' ] ]", "web.cfg:4: disk: contains a list"),
    ("disk = [ 'a.img,,xvda',\n 'b.img,,xvda' ]",
     "web.cfg:4: disk: virtual device xvda is used twice (first in line 3)"),
    ("disk = [ 'a.img,,xvda', 'b.img,,d0p0' ]", "disk: virtual device d0p0 is used twice"),
    ("vif = [ 'mac=00:16:3e:00:00:01', 'mac=00:16:3E:0:0:1' ]", "vif: address 00:16:3e:00:00:01 is used twice"),
    ("vif = [ 'devid=1', 'devid=1' ]", "vif: device number 1 is used twice"),
    ("vif = [ 'type=ioemu' ]", "vif: type=ioemu needs an HVM domain, and this is pv"),
    ("channel = [ 'name=a,connection=pty', 'name=a,connection=pty' ]", "channel: name 'a' is used twice"),
    ("channel = [ 'connection=pty' ]", "has no name"),
    ("channel = [ 'name=a' ]", "unknown connection ''"),
    ("channel = [ 'name=a,connection=socket' ]", "path belongs to connection=socket"),
    ("p9 = [ 'tag=x' ]", "has no path"),
    ("p9 = [ 'tag=x,path=/a,security_model=mapped' ]", "unknown security_model"),
    ("max_grant_version = 3", "max_grant_version: 3 is out of range (1 to 2)"),
    ("tsc_mode = 'native_paravirt'", "tsc_mode: mode native_paravirt has been removed"),
    ("tsc_mode = 'nativ'", "did you mean 'native'?"),
    ("tsc_mode = 7", "unknown mode '7'"),
    ("nomigrate = 'yes'", "nomigrate: 'yes' is not a number"),
    ("cpuid = 'tm=0'", "cpuid: 'tm=0' does not start with 'host'"),
    ("cpuid = [ '1' ]", "cpuid: '1' has no colon"),
    ("builder = 'xen'", "builder: is not known"),
    ("builder = 'hvm'; type = 'pv'", "builder: contradicts type = 'pv'"),
    ("ramdisk = ''", "ramdisk: names no file"),
])
def test_mistakes_have_file_line_key_and_remedy(text, says):
    """Wrong if an impossible configuration is taken, or its error lacks place or reason."""
    assert says in failure(text)


@pytest.mark.parametrize("text, says", [
    ("kernel = 'g.py:A'", "web.cfg: name: is missing"),
    ("name = 'web'", "web.cfg: kernel: is missing"),
    ("name = ''", "cannot be empty"), ("name = 'a/b'", "is no name for a domain"), ("name = '..'", "is no name"),
    ("name = '12'", "taken for a domain id"), ("name = '-a'", "taken for an option"), ("name = ' a'", "is no name"),
    ("name = 'a\\n'", "is no name"), ("name = 'Domain-0'", "host's own domain"),
    (f"name = '{'a' * 129}'", "longer than"),
])
def test_names_and_what_must_be_there(text, says):
    """Wrong if a domain gets no name, or one that breaks file names and commands."""
    assert says in failure(text, prefix="")


@pytest.mark.parametrize("kernel, spec", [
    ("guest.py:Web", KernelSpec("python", Path("/cfg/guest.py"), "Web")),
    ("../a b.py:_X1", KernelSpec("python", Path("/a b.py"), "_X1")),
    ("/x:y/g.py:Web", KernelSpec("python", Path("/x:y/g.py"), "Web")),
    ("vmlinuz", KernelSpec("image", Path("/cfg/vmlinuz"))),
    ("boot/a:b", KernelSpec("image", Path("/cfg/boot/a:b"))),
])
def test_kernels(kernel, spec):
    """Wrong if a Python guest is taken for an image or the other way round, or the path is not the file's."""
    assert config(f"kernel = '{kernel}'").kernel == spec


@pytest.mark.parametrize("kernel, says", [
    ("", "names no file"), ("guest.py", "does not say which class"),
    ("guest.py:", "'' in 'guest.py:' is no class name"),
    ("guest.py:a-b", "is no class name"), ("guest.py:class", "is no class name"),
])
def test_what_is_no_kernel(kernel, says):
    """Wrong if a slip in the kernel line surfaces later, as an import error."""
    assert says in failure(f"kernel = '{kernel}'")


def test_missing_files_are_named_at_their_line(place):
    """Wrong if the message for the commonest mistake is not exactly the promised one."""
    text = MINIMAL + "\n\n\n\ndisk = [ 'disk.img,raw,xvda,w' ]\n"
    with pytest.raises(ConfigError) as info:
        place(text)
    assert str(info.value) == (f"{place.path}/web.cfg:7: disk: file 'disk.img' does not exist "
                               "(paths are relative to the config file)")
    assert place(text.replace("disk.img", "root.img"))[0].disk[0].target == str(place.path / "root.img")
    for line, key in (('kernel = "no.py:A"', "kernel"), ('ramdisk = "no"', "ramdisk"),
                      ('p9 = [ "tag=a,path=no" ]', "p9")):
        with pytest.raises(ConfigError, match=f"web.cfg:3: {key}: .* 'no(.py)?' does not exist"):
            place(MINIMAL + line)


def test_paths_do_not_depend_on_the_working_directory(place, monkeypatch):
    """Wrong if a relative path is looked for where the command was started."""
    place(MINIMAL)
    monkeypatch.chdir(place.path.parent)
    got, _ = load_config(f"{place.path.name}/web.cfg", ["disk=[ 'root.img,,xvda' ]"])
    assert got.disk[0].target == str(place.path / "root.img") and got.kernel.path == place.path / "guest.py"
    monkeypatch.chdir(place.path)
    assert load_config("web.cfg")[0].kernel.path == place.path / "guest.py"


def test_files_that_cannot_be_read(tmp_path):
    """Wrong if a wrong file name ends in a traceback, or an endless file in an endless read."""
    (tmp_path / "big.cfg").write_bytes(b"#" * (2 << 20))
    for path, says in ((tmp_path / "no.cfg", "No such file"), (tmp_path, "directory"), (tmp_path / "big.cfg", "larger"),
                       ("/dev/zero", "larger"), ("a\0b", "cannot be read")):
        with pytest.raises(ConfigError, match=says) as info:
            load_config(path)
        assert info.value.line is None


def test_memory_and_vcpus_fill_each_other_in():
    """Wrong if giving only the maximum, or only the start value, leaves the other at an unrelated default."""
    assert config("maxmem = 64").memory == 64 << 20
    assert config("memory = 8").maxmem == 8 << 20
    assert config("memory = 1").memory == 1 << 20
    assert (config("maxvcpus = 4").vcpus, config("vcpus = 3").maxvcpus) == (1, 3)


def test_the_command_line():
    """Wrong if cmdline, root and extra combine otherwise than in xl."""
    assert config("root = '/dev/xvda1'; extra = 'ro quiet'").command_line == "root=/dev/xvda1 ro quiet"
    assert config("extra = 'quiet'").command_line == "quiet"
    assert config("cmdline = 'a'; extra = 'b'").command_line == "a"
    assert warned("cmdline = 'a'; extra = 'b'") == ["web.cfg:3: warning: extra: is not used, because cmdline is set"]


def test_what_is_derived_is_repeatable_and_distinct():
    """Wrong if a run with the same seed sees other addresses, or two domains the same ones."""
    one, again = config("vif = ['', '']"), config("vif = ['', '']")
    assert one == again and hash(one) == hash(again)
    other, seeded = config("name = 'db'; vif = ['']"), config("vif = ['']", seed=7)
    assert len({one.uuid, other.uuid, seeded.uuid}) == 3
    assert len({one.vif[0].mac, one.vif[1].mac, other.vif[0].mac, seeded.vif[0].mac}) == 4
    assert [v.devid for v in config("vif = ['', 'devid=0', '']").vif] == [1, 0, 2]


@pytest.mark.parametrize("text, warning", [
    ("vcpu = 2", "web.cfg:3: warning: vcpu: is not a known key, and is not used (did you mean 'vcpus'?)"),
    ("frobnicate = 1", "web.cfg:3: warning: frobnicate: is not a known key, and is not used"),
    ("vnc = 1", "web.cfg:3: warning: vnc: is a key of xl that has no effect here"),
    ("tsc_mode = 1", 'web.cfg:3: warning: tsc_mode: numbers are deprecated; write "always_emulate"'),
    ("builder = 'hvm'", 'web.cfg:3: warning: builder: is deprecated; write type = "hvm"'),
    ("vif = [\n'model=e1000' ]", "web.cfg:4: warning: vif: model has no effect"),
    ("cpus = ['0', '1']",
     "web.cfg:3: warning: cpus: has more entries than there are vCPUs (1); the others are not used"),
    ("name = 'b'", "web.cfg:3: warning: name: is set again; the value of line 1 is not used"),
])
def test_warnings(text, warning):
    """Wrong if something that has no effect is silently taken, or warned of without its place."""
    assert warned(text) == [warning]


def test_overrides():
    """Wrong if the command line does not win, or an error in it is blamed on the file."""
    got = config("memory = 64\nextra = 'a'", "memory=16M", "vcpus=2", "extra+=' b'")
    assert (got.memory, got.vcpus, got.extra) == (16 << 20, 2, "a b")
    assert warned("memory = 64", "memory=16M") == []
    assert failure("", "vcpus=none") == ("command line: vcpus: 'none' is not a number "
                                         "(decimal, 0x hexadecimal or 0 octal)")


@pytest.mark.parametrize("text, says", [
    ("type = 'hvm'", "web.cfg:2: kernel: a guest in Python is a PV guest"),
    ("type = 'pvh'", "runs no PVH domains"),
    ("bootloader = 'pygrub'", "bootloader: this version runs no boot loader"),
    ("pool = 'p'", "there is no CPU pool 'p'"),
    ("disk = [ 'a.img,raw,xvda',\n'a.img,qcow2,xvdb' ]", "web.cfg:4: disk: format qcow2 is not supported"),
    ("disk = [ 'nbd:a,xvda,w' ]", "disk: script=block-nbd is not supported"),
    ("disk = [ 'a.img,raw,xvda,w,backend=store' ]", "disk: backend=store is not supported"),
    ("disk = [ 'a.img,raw,xvda,w,specification=virtio' ]", "disk: specification=virtio is not supported"),
])
def test_what_this_version_refuses(text, says):
    """Wrong if something that cannot run is started, or refused without saying what is missing."""
    with pytest.raises(ConfigError) as info:
        check_supported(parse_config(MINIMAL + text, "web.cfg", check_files=False)[0])
    assert says in str(info.value)


def test_what_this_version_leaves_out_is_said():
    """Wrong if a device is silently not there."""
    got = parse_config(MINIMAL + "vif = [ '' ]\nramdisk = 'r'", "web.cfg", check_files=False)[0]
    assert [str(w) for w in check_supported(got)] == [
        "web.cfg:3: warning: vif: has no effect: this version has no network interfaces",
        "web.cfg:4: warning: ramdisk: has no effect: this version has no RAM disks for Python guests"]
    image = parse_config("name = 'a'\nkernel = 'x.elf'\nramdisk = 'r'", "web.cfg", check_files=False)[0]
    assert image.kernel.kind == "image" and check_supported(image) == []
    pc = parse_config("name = 'a'\ntype = 'hvm'\nkernel = 'x.elf'\ndisk = [ 'd,,xvda' ]", "web.cfg", check_files=False)[0]
    assert [str(w) for w in check_supported(pc)] == ["web.cfg:4: warning: disk: has no effect: this version has no disk controller on a plain PC"]


def test_an_image_is_configured_without_a_file(tmp_path, monkeypatch):
    """Wrong if `xenlike run ./image key=value` makes another domain than a file with these lines would."""
    monkeypatch.chdir(tmp_path)
    for name in ("mini-os.gz", "initrd"):
        (tmp_path / name).write_bytes(b"x")
    config, warnings = image_config("mini-os.gz", ["memory=64M", "ramdisk=initrd", "extra=a=b"])
    assert warnings == [] and check_supported(config) == []
    assert config.kernel == KernelSpec("image", tmp_path / "mini-os.gz") and config.ramdisk == tmp_path / "initrd"
    assert (config.name, config.memory, config.command_line) == ("mini-os", 64 << 20, "a=b")
    assert image_config("mini-os.gz", ["name='other'"])[0].name == "other"
    assert str(config.error("kernel", "is damaged")) == "command line: kernel: is damaged"
    for words, key in (([], "vcpus"), (["vcpus=9"], "vcpus"), (["vcpus=1", "maxvcpus=9"], "maxvcpus")):
        assert image_config("mini-os.gz", words)[0].vcpus_key == key
    assert [name_for(f"boot/{name}") for name in ("grub-x86_64-xen.bin", "guest.py:Hello", "17", "-x", ".hidden")] == [
        "grub-x86_64-xen", "hello", "guest", "guest", ".hidden"]


def test_errors_found_later_still_name_the_line():
    """Wrong if the builder cannot say where the value stood that it could not use."""
    got = parse_config(MINIMAL + "disk = [\n'a,,xvda', 'b,,xvdb' ]", "web.cfg", check_files=False)[0]
    assert str(got.error("kernel", "no class Web", hint="try Wob")) == "web.cfg:2: kernel: no class Web (try Wob)"
    assert str(got.error("disk[1]", "is empty")) == "web.cfg:4: disk: is empty"
    assert str(got.error("vcpus", "too many")) == "web.cfg: vcpus: too many"
    assert pickle.loads(pickle.dumps(got)) == got


def test_from_python_values(tmp_path):
    """Wrong if a program's arguments are typed or checked otherwise than a file's."""
    class Hello:
        pass
    got, warnings = config_from_values({"name": "t1", "kernel": Hello, "memory": "16M", "vcpus": 2, "nomigrate": True,
                                        "disk": ["a.img,,xvda"], "extra": None}, directory=tmp_path, check_files=False)
    assert warnings == [] and got.kernel.guest is Hello and got.kernel.kind == "python"
    assert got.kernel.path == Path(__file__) and got.kernel.classname.endswith("Hello")
    assert (got.memory, got.vcpus, got.nomigrate, got.extra) == (16 << 20, 2, True, None)
    assert got.disk[0].target == str(tmp_path / "a.img")
    file, _ = parse_config("name='t1'; kernel='g.py:A'; memory='16M'; vcpus=2; nomigrate=1; disk=['a.img,,xvda']",
                           str(tmp_path / "t.cfg"), check_files=False)
    assert file.uuid == got.uuid and file.disk == got.disk
    for bad, says in (({"memory": 1.5}, "arguments: memory: a float is no value"),
                      ({"vcpus": "x"}, "arguments: vcpus:"),
                      ({"extra": "\0"}, "NUL"), ({"kernel": 5}, "arguments: kernel: file '5' does not exist")):
        with pytest.raises(ConfigError) as info:
            config_from_values({"name": "t1", "kernel": Hello} | bad)
        assert says in str(info.value)


def test_core_dumps_are_not_promised():
    """Whoever relies on a dump would learn only after the crash that there is none."""
    got, _ = parse_config(MINIMAL + 'on_crash = "coredump-restart"', "web.cfg", check_files=False)
    assert any("on_crash" in str(w) and "no core dumps" in str(w) for w in check_supported(got))
