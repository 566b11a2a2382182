"""Domain configurations: the table of keys, and from an xl.cfg file to a ``DomainConfig``.

Owns which keys there are and what they mean. ``KEYS`` is the one table: parsing, the list of known keys, the defaults
and docs/config-keys.md derive from it; to add a key is a row here and a field in ``DomainConfig``. Called by the
commands (``load_config``), the Python API (``config_from_values``) and the builder, which reads the result and raises
what it finds wrong later through ``DomainConfig.error``, so that the user is still told the line.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

from . import values, xlcfg
from .cpus import CpuidPolicy, CpuList
from .disk import Disk
from .errors import ConfigError, ConfigWarning, Location, SpecError, did_you_mean, show
from .sizes import MIB, format_size
from .values import P9, Channel, KernelSpec, Kind
from .vif import Vif, derive_mac

MAX_FILE_SIZE = 1 * MIB
MAX_VCPUS = 8192                # Xen's limit for a PV domain
_UUID_NAMESPACE = uuid.UUID("5ba1d1e6-7c0e-5b1c-9d0a-78656e6c696b")

_ACTIONS = values.words("destroy", "restart", "rename-restart", "preserve", "coredump-destroy", "coredump-restart")


@dataclass(frozen=True)
class Key:
    """One row of the table. ``default`` is the value when the key is absent; ``absent`` says so where it is derived."""

    name: str
    kind: Kind
    default: Any
    doc: str
    unit: str = ""
    absent: str = ""


KEYS: Mapping[str, Key] = MappingProxyType({key.name: key for key in (
    Key("name", values.NAME, None, "The domain's name, unique on the host.", absent="must be given"),
    Key("type", values.words("pv", "pvh", "hvm"), "pv", "Kind of domain: pv, or hvm, a plain PC (docs/pc.md). pvh is not run.",
        absent="what the image is made for, or else pv"),
    Key("kernel", values.KERNEL, None, "What runs in the domain.", absent="must be given, or bootloader"),
    Key("ramdisk", values.PATH, None, "File handed to the kernel as its initial RAM disk."),
    Key("cmdline", values.STRING, None, "The kernel's command line; root and extra are then not used."),
    Key("root", values.STRING, None, "Adds root=STRING to the command line."),
    Key("extra", values.STRING, None, "Added to the command line."),
    Key("memory", values.MEMORY, 32 * MIB, "Memory at start. Python guests can do with 1M.", "MiB",
        "maxmem, or else 32"),
    Key("maxmem", values.MEMORY, None, "The most memory the domain can ever have.", "MiB", "memory"),
    Key("vcpus", values.integer(1, MAX_VCPUS), 1, "vCPUs online at start."),
    Key("maxvcpus", values.integer(1, MAX_VCPUS), None, "vCPUs the domain can bring up.", absent="vcpus"),
    Key("cpus", values.CPUS, (), "Physical CPUs on which vCPUs may run (hard affinity).", absent="all"),
    Key("cpus_soft", values.CPUS, (), "Physical CPUs on which vCPUs prefer to run (soft affinity).", absent="all"),
    Key("cpu_weight", values.integer(1, 65535), 256, "Share of CPU time under contention, relative to other domains'."),
    Key("cap", values.integer(0, 100 * MAX_VCPUS), 0, "Most CPU time, 100 being one physical CPU; 0 is no limit.", "%"),
    Key("pool", values.STRING, "Pool-0", "CPU pool to run in."),
    Key("uuid", values.UUID, None, "The domain's UUID.", absent="derived from seed and name"),
    Key("on_poweroff", _ACTIONS, "destroy", "What to do when the domain powers off."),
    Key("on_reboot", _ACTIONS, "restart", "What to do when the domain asks for a reboot."),
    Key("on_crash", _ACTIONS, "destroy", "What to do when the domain crashes."),
    Key("on_watchdog", _ACTIONS, "destroy", "What to do when the domain's watchdog fires."),
    Key("disk", values.DISKS, (), "Virtual disks; see [disk](#disk)."),
    Key("vif", values.VIFS, (), "Network interfaces; see [vif](#vif)."),
    Key("channel", values.CHANNELS, (), "Byte streams to the host; see [channel](#channel)."),
    Key("p9", values.P9S, (), "Shared directories; see [p9](#p9)."),
    Key("bootloader", values.STRING, None, "Program on the host that finds kernel and ramdisk in the first disk."),
    Key("max_grant_frames", values.integer(1, 1 << 20), 64, "Limit of the grant table; a frame has 512 entries.",
        "frames"),
    Key("max_maptrack_frames", values.integer(0, 1 << 20), 1024, "Limit of the table of grants that the domain maps.",
        "frames"),
    Key("max_grant_version", values.integer(1, 2), 2, "Highest version of the grant table that the guest may choose."),
    Key("max_event_channels", values.integer(1, 131071), 1023, "Limit of event channel ports."),
    Key("nomigrate", values.BOOLEAN, False, "The domain cannot be saved or migrated."),
    Key("tsc_mode", values.TSC_MODE, "default", "How the time stamp counter appears."),
    Key("cpuid", values.CPUID, CpuidPolicy(), "Changes to what CPUID answers.", absent="the host's policy"),
)})

# Keys of xl.cfg(5) that mean nothing here: named so that they are not taken for slips of the finger.
FOREIGN_KEYS = frozenset("""
    acpi acpi_firmware acpi_laptop_slate acpi_s3 acpi_s4 altp2m altp2m_count altp2mhvm apic arm_sci bios
    bios_path_override boot bootloader_args bootloader_restrict bootloader_user device_model device_model_args
    device_model_args_hvm device_model_args_pv device_model_override device_model_stubdomain_override
    device_model_stubdomain_seclabel device_model_user device_model_version device_tree display dm_restrict
    driver_domain dtdev e820_host extratime firmware firmware_override gfx_passthru gic_version hap hdtype hpet
    hvm_pirq init_seclabel iomem ioports irqs keymap latency llc_colors localtime mca_caps mmio_hole ms_vm_genid
    msr_relaxed nestedhvm nographic nr_spis nx on_soft_reset oos opengl pae passthrough pci pci_msitranslate
    pci_permissive pci_power_mgmt pci_seize period pvcalls pvshim pvshim_cmdline pvshim_extra pvshim_path rdm
    rdm_mem_boundary rtc_timeoffset sdl seclabel serial shadow_memory slice smbios smbios_firmware soundhw spice
    spice_clipboard_sharing spice_image_compression spice_streaming_video spiceagent_mouse spicedisable_ticketing
    spicehost spicepasswd spiceport spicetls_port spiceusbredirection spicevdagent stdvga stubdomain_cmdline
    stubdomain_kernel stubdomain_memory stubdomain_ramdisk sve tee timer_mode trap_unmapped_accesses usb usbctrl
    usbdev usbdevice usbversion vdispl vendor_device vfb vga videoram vif2 viridian virtio vkb vkb_device
    vmtrace_buf_kb vnc vncdisplay vnclisten vncpasswd vncunused vncviewer vnuma vpmu vpt_align vsnd vtpm vuart
    xauthority xen_platform_pci xen_platform_pci_bar_uc xend_suspend_evtchn_compat xenstore_feature_mask
    xenstore_quota
""".split())


@dataclass(frozen=True, kw_only=True)
class DomainConfig:
    """One domain's configuration, checked and complete: nothing derived is missing. A field for every row of ``KEYS``.

    ``memory`` and ``maxmem`` are bytes. ``cpus`` and ``cpus_soft`` have an entry for each of the first vCPUs; those
    beyond are not pinned. ``source`` says where each key stood (``"disk"``, and ``"disk[0]"`` for items).
    """

    name: str
    type: str
    kernel: KernelSpec | None
    ramdisk: Path | None
    cmdline: str | None
    root: str | None
    extra: str | None
    memory: int
    maxmem: int
    vcpus: int
    maxvcpus: int
    cpus: tuple[CpuList, ...]
    cpus_soft: tuple[CpuList, ...]
    cpu_weight: int
    cap: int
    pool: str
    uuid: uuid.UUID
    on_poweroff: str
    on_reboot: str
    on_crash: str
    on_watchdog: str
    disk: tuple[Disk, ...]
    vif: tuple[Vif, ...]
    channel: tuple[Channel, ...]
    p9: tuple[P9, ...]
    bootloader: str | None
    max_grant_frames: int
    max_maptrack_frames: int
    max_grant_version: int
    max_event_channels: int
    nomigrate: bool
    tsc_mode: str
    cpuid: CpuidPolicy
    source: Mapping[str, Location] = field(default_factory=dict, compare=False, repr=False)

    @property
    def command_line(self) -> str:
        """The kernel's command line: ``cmdline``, or else what ``root`` and ``extra`` make together."""
        if self.cmdline is not None:
            return self.cmdline
        root = None if self.root is None else f"root={self.root}"
        return " ".join(part for part in (root, self.extra) if part)

    @property
    def vcpus_key(self) -> str:
        """Which key said how many vCPUs there may be."""
        return "maxvcpus" if "maxvcpus" in self.source else "vcpus"

    def where(self, key: str) -> Location:
        """Where ``key`` (or an item, ``"disk[0]"``) was set, or the file if it was not."""
        return self.source.get(key) or Location(self.source[""].file if "" in self.source else f"domain {self.name}")

    def error(self, key: str, message: str, *, hint: str | None = None) -> ConfigError:
        """The error to raise when what ``key`` asks for turns out to be wrong after parsing."""
        return ConfigError(self.where(key), key.partition("[")[0], message, hint=hint)


# --- reading --------------------------------------------------------------------------------------------------------

def load_config(path: str | os.PathLike[str], overrides: Iterable[str] = (), *, seed: int = 0,
                check_files: bool = True) -> tuple[DomainConfig, list[ConfigWarning]]:
    """Read the configuration file ``path``.

    ``overrides`` are ``key=value`` words of a command line, as for ``xl create``: they count after the file, as if
    written in it. ``seed`` is the host's: what is not given and must be unique (UUID, MAC addresses) is derived from
    it. ``check_files=False`` leaves unchecked whether the named files exist. Raises ``ConfigError``.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            text = file.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        raise ConfigError(Location(name), None, f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(Location(show(name)), None, f"cannot be read: {error}") from None
    if len(text) > MAX_FILE_SIZE:
        raise ConfigError(Location(name), None, f"is larger than {format_size(MAX_FILE_SIZE)}",
                          hint="is it a configuration file?")
    return parse_config(text, name, overrides, seed=seed, check_files=check_files)


def parse_config(text: str | bytes, filename: str, overrides: Iterable[str] = (), *, seed: int = 0,
                 check_files: bool = True) -> tuple[DomainConfig, list[ConfigWarning]]:
    """The same as ``load_config`` for a text that stands for the file ``filename``, which need not exist."""
    document = xlcfg.parse(text, filename, overrides=overrides)
    directory = os.path.dirname(os.path.abspath(filename))
    return _build(document, filename, directory, {}, seed=seed, check_files=check_files)


def config_from_values(settings: Mapping[str, Any], *, directory: str | os.PathLike[str] = ".", seed: int = 0,
                       check_files: bool = True, origin: str = "arguments") -> tuple[DomainConfig, list[ConfigWarning]]:
    """A configuration from Python values: strings, integers, booleans and lists, as they would stand in a file.

    ``kernel`` may also be a guest's class or a ``KernelSpec``; None stands for an absent key. ``origin`` is shown in
    messages where a file's name would be. Raises ``ConfigError``.
    """
    where = Location(origin)
    document, ready = xlcfg.Document(), {}
    for key, value in settings.items():
        if key == "kernel" and isinstance(value, (type, KernelSpec)):
            ready[key] = KernelSpec.of_class(value) if isinstance(value, type) else value
        elif value is not None:
            document.settings[key] = xlcfg.Setting(key, _as_node(key, value, where))
    return _build(document, origin, os.fspath(directory), ready, seed=seed, check_files=check_files)


def image_config(path: str | os.PathLike[str], overrides: Iterable[str] = (), *, seed: int = 0) -> tuple[DomainConfig, list[ConfigWarning]]:
    """A configuration for the image ``path``, without a file: ``kernel`` is the image and ``name`` is made from it.

    ``overrides`` are ``key=value`` words, in which paths are relative to the current directory. Raises ``ConfigError``.
    """
    origin = xlcfg.COMMAND_LINE
    document, where = xlcfg.parse("", origin, overrides=overrides), Location(origin)
    for key, text in (("kernel", os.path.abspath(path)), ("name", name_for(path))):
        document.settings.setdefault(key, xlcfg.Setting(key, xlcfg.Scalar(text, True, where)))
    return _build(document, origin, os.getcwd(), {}, seed=seed, check_files=True)


def name_for(kernel: str | os.PathLike[str]) -> str:
    """A domain's name from what it runs: ``boot/mini-os.gz`` gives ``mini-os``, ``guest.py:Hello`` gives ``hello``."""
    text = os.path.basename(os.fspath(kernel))
    head, colon, classname = text.rpartition(":")
    name = classname.lower() if colon and head.endswith(".py") else text.split(".")[0] or text
    try:
        return values.parse_domain_name(name)
    except SpecError:
        return "guest"


def _as_node(key: str, value: Any, where: Location) -> xlcfg.Value:
    if isinstance(value, (list, tuple)):
        return xlcfg.ListValue(tuple(_as_node(key, item, where) for item in value), where)
    if isinstance(value, (str, os.PathLike, uuid.UUID)):
        text = str(value)
    elif isinstance(value, int):
        text = str(int(value))
    else:
        raise ConfigError(where, key, f"a {type(value).__name__} is no value of a configuration",
                          hint="strings, numbers and lists are")
    if "\0" in text:
        raise ConfigError(where, key, "a string cannot contain the NUL character")
    return xlcfg.Scalar(text, isinstance(value, str), where)


def _build(document: xlcfg.Document, filename: str, directory: str, ready: Mapping[str, Any], *, seed: int,
           check_files: bool) -> tuple[DomainConfig, list[ConfigWarning]]:
    """Type the settings by the table, fill in what is absent, and check what keys say about each other."""
    warnings = list(document.warnings)
    source = {"": Location(filename)}
    found: dict[str, Any] = dict(ready)
    _translate_builder(document, warnings)
    for key, setting in document.settings.items():
        source[key] = setting.value.where
        row = KEYS.get(key)
        if row is None:
            warnings.append(_unknown_key(key, setting.value.where))
            continue
        if isinstance(setting.value, xlcfg.ListValue):
            source.update((f"{key}[{i}]", item.where) for i, item in enumerate(setting.value.items))
        context = values.Context(directory, check_files, lambda where, message, key=key:
                                 warnings.append(ConfigWarning(where, key, message)))
        try:
            found[key] = row.kind.parse(setting.value, context)
        except SpecError as error:
            raise ConfigError(error.where or setting.value.where, key, error.message, hint=error.hint) from None
        if setting.appended and type(found[key]) in (int, bool):
            raise ConfigError(setting.value.where, key, "+= cannot be used with a number", hint="use =")
    if "name" not in found:
        raise ConfigError(Location(filename), "name", "is missing", hint='every domain has one: name = "web"')
    return _complete(found, source, warnings, seed), warnings


def _unknown_key(key: str, where: Location) -> ConfigWarning:
    if key in FOREIGN_KEYS:
        return ConfigWarning(where, key, "is a key of xl that has no effect here")
    return ConfigWarning(where, key if len(key) <= 40 else show(key), "is not a known key, and is not used",
                         did_you_mean(key, KEYS))


def _translate_builder(document: xlcfg.Document, warnings: list[ConfigWarning]) -> None:
    """Old files say builder="hvm" or "generic" for what is now type: not to heed it would build another machine."""
    setting = document.settings.pop("builder", None)
    if setting is None:
        return
    where = setting.value.where
    types = {"hvm": "hvm", "generic": "pv", "linux": "pv"}
    kind = types.get(setting.value.text) if isinstance(setting.value, xlcfg.Scalar) else None
    if kind is None:
        raise ConfigError(where, "builder", "is not known", hint='remove it, and write type = "pv"')
    warnings.append(ConfigWarning(where, "builder", f'is deprecated; write type = "{kind}"'))
    chosen = document.settings.setdefault("type", xlcfg.Setting("type", xlcfg.Scalar(kind, True, where)))
    if isinstance(chosen.value, xlcfg.Scalar) and chosen.value.text != kind:
        raise ConfigError(where, "builder", f"contradicts type = {show(chosen.value.text)}", hint="remove builder")


def _complete(found: dict[str, Any], source: dict[str, Location], warnings: list[ConfigWarning],
              seed: int) -> DomainConfig:
    given = set(found)
    for key in KEYS.values():
        found.setdefault(key.name, key.default)
    if "memory" not in given:
        found["memory"] = found["maxmem"] or found["memory"]
    found["maxmem"] = found["maxmem"] or found["memory"]
    found["maxvcpus"] = found["maxvcpus"] or found["vcpus"]
    found["uuid"] = found["uuid"] or uuid.uuid5(_UUID_NAMESPACE, f"{seed}/{found['name']}")
    for key in ("cpus", "cpus_soft"):
        if isinstance(found[key], CpuList):
            found[key] = (found[key],) * found["maxvcpus"]
        elif len(found[key]) > found["maxvcpus"]:
            warnings.append(ConfigWarning(source[key], key, f"has more entries than there are vCPUs "
                                          f"({found['maxvcpus']}); the others are not used"))
            found[key] = found[key][:found["maxvcpus"]]
    found["vif"] = _complete_vifs(found["vif"], found["name"], seed)
    config = DomainConfig(**found, source=source)
    _check(config, warnings)
    return config


def _complete_vifs(vifs: tuple[Vif, ...], name: str, seed: int) -> tuple[Vif, ...]:
    """Give every interface a device number and an address."""
    addresses = {vif.mac for vif in vifs if vif.mac}
    numbers = {vif.devid for vif in vifs if vif.devid is not None}
    complete = []
    for index, vif in enumerate(vifs):
        devid = next(n for n in count() if n not in numbers) if vif.devid is None else vif.devid
        mac = vif.mac or derive_mac(seed, name, index, taken=addresses)
        addresses.add(mac)
        numbers.add(devid)
        complete.append(replace(vif, mac=mac, devid=devid))
    return tuple(complete)


def _check(config: DomainConfig, warnings: list[ConfigWarning]) -> None:
    """What keys say about each other."""
    if config.maxmem < config.memory:
        raise config.error("maxmem", f"{format_size(config.maxmem)} is less than memory, {format_size(config.memory)}",
                           hint="raise maxmem or lower memory")
    if config.maxvcpus < config.vcpus:
        raise config.error("maxvcpus", f"{config.maxvcpus} is less than vcpus, {config.vcpus}",
                           hint="raise maxvcpus or lower vcpus")
    if config.cap > 100 * config.maxvcpus:
        raise config.error("cap", f"{config.cap} is more than {config.maxvcpus} vCPUs can use",
                           hint=f"0 to {100 * config.maxvcpus}; 100 is one CPU")
    if config.kernel is not None and config.bootloader is not None:
        warnings.append(ConfigWarning(config.where("kernel"), "kernel", "is not used, because bootloader is set"))
    if config.kernel is None and config.bootloader is None and config.type != "hvm":
        raise config.error("kernel", "is missing", hint='kernel = "guest.py:ClassName"')
    if config.cmdline is not None:
        for key in ("root", "extra"):
            if getattr(config, key) is not None:
                warnings.append(ConfigWarning(config.where(key), key, "is not used, because cmdline is set"))
    for index, vif in enumerate(config.vif):
        if vif.type == "ioemu" and config.type != "hvm":
            raise config.error(f"vif[{index}]", f"type=ioemu needs an HVM domain, and this is {config.type}",
                               hint="remove type=ioemu")
    _check_distinct(config, "disk", [(d.device, f"virtual device {d.vdev}") for d in config.disk])
    _check_distinct(config, "vif", [(v.mac, f"address {v.mac}") for v in config.vif])
    _check_distinct(config, "vif", [(v.devid, f"device number {v.devid}") for v in config.vif])
    _check_distinct(config, "channel", [(c.name, f"name {show(c.name)}") for c in config.channel])
    _check_distinct(config, "p9", [(p.tag, f"tag {show(p.tag)}") for p in config.p9])


def _check_distinct(config: DomainConfig, key: str, identities: list[tuple[Any, str]]) -> None:
    """No two devices of a class may have the same identity; the second one is the error."""
    first: dict[Any, int] = {}
    for index, (identity, wording) in enumerate(identities):
        if identity in first:
            line = config.where(f"{key}[{first[identity]}]").line
            raise config.error(f"{key}[{index}]", f"{wording} is used twice",
                               hint=f"first in line {line}" if line else f"items {first[identity]} and {index}")
        first[identity] = index


# --- what this version can do ---------------------------------------------------------------------------------------

def check_supported(config: DomainConfig) -> list[ConfigWarning]:
    """Refuse what is valid for Xen and not done by this version; warn of what has no effect yet.

    Raises ``ConfigError`` for what the domain could not run without, and returns warnings for the rest.
    """
    this = "this version"
    if config.type == "pvh":
        raise config.error("type", f"{this} runs no PVH domains", hint="type = \"hvm\" runs the same image on a plain PC, if it needs no Xen")
    if config.type == "hvm" and config.kernel is None:
        raise config.error("kernel", "is missing: there is no firmware that could boot from a disk", hint='kernel = "guest.elf"')
    if config.type == "hvm" and config.kernel is not None and config.kernel.kind == "python":
        raise config.error("kernel", "a guest in Python is a PV guest", hint='remove type = "hvm"')
    if config.kernel is None or config.bootloader is not None:
        raise config.error("bootloader", f"{this} runs no boot loader on the host",
                           hint='kernel = "guest.py:ClassName"')
    for index, disk in enumerate(config.disk):
        key = f"disk[{index}]"
        if disk.format not in ("raw", "empty"):
            raise config.error(key, f"format {disk.format} is not supported; {this} serves raw images",
                               hint="qemu-img convert -O raw makes one")
        if disk.script is not None:
            raise config.error(key, f"script={disk.script} is not supported; {this} runs no hotplug scripts")
        if disk.backend not in ("0", "Domain-0"):
            raise config.error(key, f"backend={disk.backend} is not supported; domain 0 serves all disks")
        if disk.specification != "xen":
            raise config.error(key, f"specification={disk.specification} is not supported", hint="use xen")
    if config.pool != KEYS["pool"].default:
        raise config.error("pool", f"there is no CPU pool {show(config.pool)}; {this} has Pool-0 only")
    without_effect = {"vif": "network interfaces", "channel": "channels", "p9": "shared directories", "cpuid": "CPUID policies"}
    if config.kernel.kind == "python":
        without_effect |= {"ramdisk": "RAM disks for Python guests", "cpuid": "CPUID policies for Python guests"}
    if config.type == "hvm":
        without_effect["disk"] = "disk controller on a plain PC"
    found = [ConfigWarning(config.where(key), key, f"has no effect: {this} has no {what}")
             for key, what in without_effect.items() if getattr(config, key) not in ((), None, CpuidPolicy())]
    for key in ("on_poweroff", "on_reboot", "on_crash", "on_watchdog"):
        if getattr(config, key).startswith("coredump-"):
            found.append(ConfigWarning(config.where(key), key, f"{this} writes no core dumps; the rest is done"))
    return found


assert tuple(KEYS) == tuple(f.name for f in fields(DomainConfig) if f.name != "source")
