"""The plain PC's devices and CPU, by guests that check them from inside (tests/guests/pc_guests), and its ends, input and debugger from outside."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from pc_images import SUCCESS, example, guest, run_on_qemu

from xenlike import Host
from xenlike.engine import lib
from xenlike.lane import Stalled
from xenlike.toolstack import ConfigError

CHIPS = ["ok pic", "ok pic in service", "ok pit", "ok rtc", "ok uart", "ok apic", "ok apic timer", "ok apic disabled"]
SENSITIVE = ["sgdt", "sidt", "sldt", "smsw", "str", "pushf", "popf", "lar", "lsl", "verr", "verw", "push segment", "pop segment", "far call",
             "far jump", "far return", "int n", "mov from segment"]


def lines(domain) -> list[str]:
    return domain.console.text.replace("\r", "").splitlines()


def run(path: Path, clock: str = "virtual", **settings):
    with Host(clock=clock) as host:
        domain = host.create(path, **settings)
        return domain.wait(timeout=120), lines(domain)


@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_the_chips(clock: str) -> None:
    """Wrong if a chip does not do what its data sheet says; the guest names the check."""
    result, said = run(guest("chips"), clock)
    assert said == CHIPS and result.exit_code == SUCCESS


def test_the_chips_of_qemu() -> None:
    """Wrong if the guest checks our machine's habits instead of a PC's. (QEMU does not mask LVTs when the APIC is disabled by software.)"""
    assert run_on_qemu(guest("chips"))[1][:len(CHIPS) - 1] == CHIPS[:-1]


@pytest.fixture(scope="module")
def sensitive() -> list[str]:
    return run(guest("sensitive"))[1]


@pytest.mark.parametrize("name", SENSITIVE)
def test_a_sensitive_instruction(sensitive: list[str], name: str) -> None:
    """Wrong if an unmodified guest can see by this instruction, at level 0 or 3, that it does not run on bare metal."""
    assert f"ok {name}" in sensitive, sensitive


def test_the_sensitive_instructions_under_qemu() -> None:
    """Wrong if what the guest takes for bare metal is not."""
    assert run_on_qemu(guest("sensitive")) == (SUCCESS, [f"ok {name}" for name in SENSITIVE])


@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_any_port_and_register_with_any_value(clock: str) -> None:
    """Wrong if a guest can hang or break the host, or a device for good, by an access that nobody had thought of."""
    result, said = run(guest("hostile"), clock)
    assert result.exit_code == SUCCESS and said[-1].endswith("survived")


@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_a_running_processor_is_restarted(clock: str) -> None:
    """Wrong if INIT loses count of the instructions that the clock is made of, so that time jumps, or the processor goes on after it."""
    result, said = run(guest("restart"), clock, vcpus=2)
    assert (result.exit_code, said) == (SUCCESS, ["restart: 50 times"]), result


# ---- small images, made here -----------------------------------------------------------------------------------------

LOAD = 0x100000


def multiboot(code: bytes, *, flags: int = 1 << 16, **wrong: int) -> bytes:
    """A raw multiboot image that begins with its header; ``code`` follows, at LOAD + 32."""
    size = 32 + len(code)
    values = {"checksum": -(0x1BADB002 + flags) & 0xFFFFFFFF, "header_addr": LOAD, "load_addr": LOAD, "load_end": LOAD + size, "bss_end": 0,
              "entry": LOAD + 32, **wrong}
    return struct.pack("<IIIIIIII", 0x1BADB002, flags, values["checksum"], values["header_addr"], values["load_addr"], values["load_end"],
                       values["bss_end"], values["entry"]) + code


def out(port: int, value: int) -> bytes:
    return b"\xba" + struct.pack("<I", port) + b"\xb8" + struct.pack("<I", value) + b"\xee"        # mov edx, port; mov eax, value; out dx, al


PRINT_OK = out(0xE9, ord("o")) + out(0xE9, ord("k"))


@pytest.mark.parametrize("code, reason, exit_code", [
    (out(0xF4, 5), "poweroff", 11),
    (out(0x64, 0xFE), "reboot", None),
    (out(0xCF9, 6), "reboot", None),
    (out(0x92, 1), "reboot", None),
    (b"\x0f\x0b", "crash", None),               # ud2 without an IDT: triple fault
])
def test_ends(tmp_path: Path, code: bytes, reason: str, exit_code: int | None) -> None:
    """Wrong if a PC's ways to end are taken for each other, or the output before it is lost."""
    (tmp_path / "image").write_bytes(multiboot(PRINT_OK + code + b"\xf4\xeb\xfd"))
    result, said = run(tmp_path / "image", on_reboot="destroy", on_crash="destroy")
    assert (result.reason, result.exit_code, said) == (reason, exit_code, ["ok"])
    if reason == "crash":
        assert "triple fault" in result.crash_reason and "rip" in result.report


def test_halted_for_good_is_said(tmp_path: Path) -> None:
    """Wrong if a guest that halts with interrupts off keeps a host busy, or nobody says what is waited for."""
    (tmp_path / "image").write_bytes(multiboot(PRINT_OK + b"\xfa\xf4"))
    with Host(clock="virtual") as host:
        host.create(tmp_path / "image", vcpus=2)
        with pytest.raises(Stalled, match="(?s)vcpu 0: blocked.*vcpu 1: down"):
            host.wait_until(lambda: False)


ECHO = (b"\xba\xfd\x03\0\0\xec\xa8\x01\x74\xf6"                         # 1: mov edx, 3fd; in al, dx; test al, 1; jz 1b
        b"\xba\xf8\x03\0\0\xec\xee\x3c\x0a\x75\xeb" + out(0xF4, 0))     # mov edx, 3f8; in al, dx; out dx, al; cmp al, 10; jne 1b


@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_serial_input(tmp_path: Path, clock: str) -> None:
    """Wrong if what a user types does not reach the guest, byte by byte and in order, also when it is more than the port holds."""
    (tmp_path / "image").write_bytes(multiboot(ECHO))
    text = ("0123456789" * 2000) + "\n"
    with Host(clock=clock) as host:
        domain = host.create(tmp_path / "image")
        domain.console.send(text)
        assert domain.wait(timeout=120).exit_code == SUCCESS and domain.console.text == text


@pytest.mark.parametrize("content, says", [
    (multiboot(b"", flags=1 << 16 | 8), "bits 0x8 ask for what no loader knows"),
    (multiboot(b"", header_addr=LOAD + 64), "do not fit a header"),
    (multiboot(b"", load_end=LOAD + 4096), "is it truncated"),
    (multiboot(b"", entry=4), "entry_addr: 0x4 is outside"),
    (multiboot(b"\xf4", bss_end=1 << 31), "give it at least memory"),
    (multiboot(b"", checksum=1), "begins with"),
])
def test_bad_images(tmp_path: Path, content: bytes, says: str) -> None:
    """Wrong if a bad header starts a guest anyway, or the user is not told which field it is."""
    if "knows" in says:
        content = content[:4] + struct.pack("<II", 8, -(0x1BADB002 + 8) & 0xFFFFFFFF) + content[12:]
    (tmp_path / "image").write_bytes(content)
    with Host(clock="virtual") as host:
        before = host.usage()
        with pytest.raises(ConfigError, match=says):
            host.create(tmp_path / "image")
        assert host.usage() == before


def test_plain_elf32_says_what_it_lacks(tmp_path: Path) -> None:
    """Wrong if a 32-bit program without a boot header gets an error that does not help."""
    header = b"\x7fELF\1\1\1" + bytes(9) + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, 0x100000, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    program = struct.pack("<IIIIIIII", 1, 0, 0x100000, 0x100000, 84, 84, 5, 4096)
    (tmp_path / "image").write_bytes(header + program)
    with Host(clock="virtual") as host:
        with pytest.raises(ConfigError, match="multiboot header"):
            host.create(tmp_path / "image")
        with pytest.raises(ConfigError, match="PHYS32_ENTRY"):
            host.create(tmp_path / "image", type="hvm")


def test_limits() -> None:
    """Wrong if more processors or memory are asked for than the machine has, and something else is built."""
    with Host(clock="virtual", memory="8G") as host:
        with pytest.raises(ConfigError, match="8 is the most"):
            host.create(example("hello64"), vcpus=9)
        with pytest.raises(ConfigError, match="a PC has at most 3072"):
            host.create(example("hello64"), memory="4G")


@pytest.mark.parametrize("seed", range(24))
def test_any_bytes_as_code(tmp_path: Path, seed: int) -> None:
    """Wrong if some bytes, run at level 0 with all devices at hand, hang or break the host, or make it lose count of frames."""
    rng = random.Random(seed)
    useful = [b"\xee", b"\xec", b"\xef", b"\xed", b"\x0f\x30", b"\x0f\x32", b"\xfb", b"\xfa", b"\x0f\x22\xc0", b"\x0f\x22\xd8", b"\x0f\x22\xe0", b"\x0f\x01\xf8",
              b"\x0f\x00\xd8", b"\x0f\x01\x18", b"\x0f\x01\x10", b"\xb9\x80\0\0\xc0", b"\xb9\x1b\0\0\0", b"\xbb\0\x03\xe0\xfe", b"\xf0\x01\x03", b"\x89\x03", b"\xcf",
              b"\xcd\x20", b"\xf4", b"\x6c", b"\x6e", b"\xf3\xa4", b"\xbf\xf8\xff\xdf\xfe", b"\xf3\xaa"]
    code = b"".join(rng.choice([rng.choice(useful), rng.choice(useful), rng.randbytes(rng.randrange(1, 6)), b"\xb8" + rng.randbytes(4),
                                b"\xba" + struct.pack("<I", rng.choice([0x20, 0x21, 0x40, 0x43, 0x61, 0x70, 0x71, 0xA1, 0x3F8, 0x3F9, 0x3FC, rng.randrange(65536)]))])
                    for _ in range(400))
    table = b"".join(struct.pack("<HHHH", (LOAD + 32 + rng.randrange(800)) & 0xFFFF, 8, 0x8E00, LOAD >> 16) for _ in range(256))
    (tmp_path / "image").write_bytes(multiboot(b"\x0f\x01\x1d" + struct.pack("<I", LOAD + 32 + 16) + b"\xe9" + struct.pack("<I", 4 + 6 + 2048 - 4)
                                               + bytes(2) * 2 + struct.pack("<HI", 2047, LOAD + 32 + 22) + table + code))
    with Host(clock="virtual") as host:
        domain = host.create(tmp_path / "image", vcpus=2, memory="4M", on_crash="preserve", on_reboot="preserve", on_poweroff="preserve")
        try:
            host.wait_until(lambda: domain.ended, timeout=0.002)
        except Stalled:
            pass
        assert lib.xl_check_frames(host.c, 1) == 0 and lib.xl_check_tlbs(host.c) == 0


def test_a_debugger(tmp_path: Path) -> None:
    """Wrong if breakpoints, steps, registers or memory of a PC are not what gdb would be shown of a PV guest."""
    from xenlike.debugger.target import Target
    (tmp_path / "image").write_bytes(multiboot(b"\xb8\x05\0\0\0\xbb\x07\0\0\0\x90\xa3\0\0\x20\0" + out(0xF4, 0)))   # mov eax, 5; mov ebx, 7; nop; mov [200000], eax
    with Host(clock="virtual") as host:
        domain = host.create(tmp_path / "image", paused=True)
        stops = []
        target = Target(domain, stops.append)
        target.breakpoint(lib.DEBUG_EXEC, LOAD + 32 + 5, 1, add=True)
        target.breakpoint(lib.DEBUG_WRITE, 0x200000, 4, add=True)
        domain.unpause()
        target.resume()
        host.wait_until(lambda: len(stops) == 1)
        state = target.registers(0)
        assert (state.regs.rip, state.regs.rax, state.mode, state.kernel_mode, stops[0].kind) == (LOAD + 37, 5, 32, 1, lib.DEBUG_BREAKPOINT)
        assert target.read(0, LOAD + 32, 5) == b"\xb8\x05\0\0\0"
        state.regs.rax = 9
        target.set_registers(0, state)
        target.step(0)
        host.wait_until(lambda: len(stops) == 2)
        assert target.registers(0).regs.rbx == 7
        target.write(0, LOAD + 42, b"\x40")             # nop becomes inc eax
        target.resume()
        host.wait_until(lambda: len(stops) == 3)
        assert stops[2].kind == lib.DEBUG_WATCHPOINT and target.read(0, 0x200000, 4) == b"\x0a\0\0\0"
        target.detach()
        assert domain.wait(timeout=10).exit_code == SUCCESS
