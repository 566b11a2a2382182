"""The C SDK's printf and strings against the host's libc, as a library in this process: they are plain functions of their arguments."""

from __future__ import annotations

import ctypes
import subprocess

import pytest
from c_images import need_tools
from hypothesis import given
from hypothesis import strategies as st

from guest_sdk import c as sdk

RENAMED = ("printf", "vprintf", "snprintf", "vsnprintf", "puts", "putchar", "memcpy", "memmove", "memset", "memcmp", "strlen",
           "strnlen", "strcmp", "strncmp", "strchr", "strstr")
LIBC = ctypes.CDLL(None)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """The SDK's functions under other names, so that they do not take the place of the process's own."""
    need_tools()
    folder = tmp_path_factory.mktemp("libc")
    target, console = folder / "ours.so", folder / "console.c"
    console.write_text("void console_write(const char *text, unsigned long n) { (void)text, (void)n; }\n")
    sources = [str(console), *(str(sdk.directory() / "src" / name) for name in ("printf.c", "string.c"))]
    flags = [flag for flag in sdk.cflags("gcc") if flag not in ("-mcmodel=kernel", "-fno-pic", "-fno-pie", "-mgeneral-regs-only")]
    subprocess.run(["gcc", *flags, "-O1", "-fPIC", "-fno-builtin", "-shared", "-nostdlib", *(f"-D{name}=g_{name}" for name in RENAMED),
                    "-o", str(target), *sources], check=True, timeout=120)
    return ctypes.CDLL(str(target))


def both(ours, size, text, *args):
    """What the two functions return and leave in a buffer of ``size`` bytes."""
    results = []
    for function in (ours.g_snprintf, LIBC.snprintf):
        buffer = ctypes.create_string_buffer(b"\xaa" * 200, 200)
        results.append((function(buffer, ctypes.c_size_t(size), text.encode(), *args), buffer.raw))
    return results


integers = st.one_of(st.integers(-(1 << 63), (1 << 64) - 1), st.sampled_from([0, 1, -1, 255, 256, -128, 1 << 31, -(1 << 31), 1 << 63]))


@given(flags=st.text("-+ 0#", max_size=3), width=st.one_of(st.just(""), st.integers(0, 40).map(str)),
       precision=st.one_of(st.just(""), st.integers(0, 30).map(lambda n: f".{n}"), st.just(".")),
       length=st.sampled_from(["", "hh", "h", "l", "ll", "z", "j", "t"]), conversion=st.sampled_from("diuxXo"), value=integers,
       size=st.integers(0, 60))
def test_integers(ours, flags, width, precision, length, conversion, value, size):
    """A number would be printed otherwise than the C standard says, or behind the end of the buffer."""
    if conversion in "diu":
        flags = flags.replace("#", "")      # no meaning there
    if conversion in "uxXo":
        flags = flags.replace("+", "").replace(" ", "")
    got, wanted = both(ours, size, f"<%{flags}{width}{precision}{length}{conversion}>", ctypes.c_uint64(value & (1 << 64) - 1))
    assert got == wanted


@given(flags=st.sampled_from(["", "-"]), width=st.integers(0, 20), precision=st.one_of(st.none(), st.integers(0, 20)),
       text=st.binary(max_size=20).filter(lambda b: 0 not in b), size=st.integers(0, 60))
def test_text(ours, flags, width, precision, text, size):
    """%s or %c would be cut or padded wrongly; * would take another argument."""
    dot, more = ("", ()) if precision is None else (".*", (precision,))
    got, wanted = both(ours, size, f"%{flags}*{dot}s|%c|%%", width, *more, text, ord("x"))
    assert got == wanted


def test_pointers_and_unknown(ours):
    """%p, or a conversion that is none, would print rubbish or take an argument."""
    buffer = ctypes.create_string_buffer(64)
    assert ours.g_snprintf(buffer, ctypes.c_size_t(64), b"%p %s %q %d", ctypes.c_void_p(0xffff800000000000), None, 7) == len(buffer.value)
    assert buffer.value == b"0xffff800000000000 (null) %q 7"


@given(a=st.binary(max_size=40), b=st.binary(max_size=40), n=st.integers(0, 40))
def test_comparisons(ours, a, b, n):
    """Strings and bytes would compare otherwise than libc has them."""
    def sign(x):
        return (x > 0) - (x < 0)

    pad = bytes(64)
    for name, args in (("memcmp", (a + pad, b + pad, n)), ("strcmp", (a + b"\0", b + b"\0")), ("strncmp", (a + b"\0", b + b"\0", n))):
        assert sign(getattr(ours, f"g_{name}")(*args)) == sign(getattr(LIBC, name)(*args)), name
    assert ours.g_strlen(a + b"\0") == LIBC.strlen(a + b"\0")


@given(data=st.binary(min_size=64, max_size=64), source=st.integers(0, 40), target=st.integers(0, 40), n=st.integers(0, 24))
def test_memmove(ours, data, source, target, n):
    """Areas that overlap would be copied over themselves."""
    buffers = []
    for function in (ours.g_memmove, LIBC.memmove):
        buffer = ctypes.create_string_buffer(data, 64)
        at = ctypes.addressof(buffer)
        function(ctypes.c_void_p(at + target), ctypes.c_void_p(at + source), ctypes.c_size_t(n))
        buffers.append(buffer.raw)
    assert buffers[0] == buffers[1]
