"""The C SDK as files: what it builds follows the public ABI, and a stranger's build finds it. Nothing is run here."""

from __future__ import annotations

import struct
import subprocess
import sys

import pytest
from c_images import EXAMPLES, example, make, need_tools
from commands import environment

from guest_sdk import c as sdk
from xenlike.loaders.image import load_image

NAMES = sorted(path.name for path in EXAMPLES.iterdir() if (path / "Makefile").exists())


@pytest.mark.parametrize("name", NAMES)
def test_notes(name):
    """A builder that knows the public ABI alone would refuse the image, or start it elsewhere."""
    image = load_image(example(name))
    assert image.virt_base == 0xFFFFFFFF80000000 == image.kstart
    assert image.entry == image.kstart and image.hypercall_page == 1
    notes = image.notes
    assert notes["XEN_VERSION"] == "xen-3.0" and notes["LOADER"] == "generic" and notes["GUEST_OS"] == "xenlike-c"


@pytest.mark.parametrize("name", NAMES)
def test_no_segment_is_writable_and_executable(name):
    """The image's own layout would let stores reach code."""
    data = example(name).read_bytes()
    phoff, = struct.unpack_from("<Q", data, 32)
    count, = struct.unpack_from("<H", data, 56)
    flags = [struct.unpack_from("<II", data, phoff + 56 * n) for n in range(count)]
    loads = [f for kind, f in flags if kind == 1]
    assert len(loads) == 3 and not [f for f in loads if f & 3 == 3]


def test_makefile_of_three_lines(tmp_path):
    """A guest of one file would need more than the tutorial says, or its build would leave files elsewhere."""
    need_tools()
    (tmp_path / "tiny.c").write_text("#include <guest.h>\nint main(int argc, char **argv) { (void)argv; return argc - 1; }\n")
    (tmp_path / "Makefile").write_text("GUEST = tiny\nSRCS = tiny.c\ninclude $(shell $(PYTHON) -m guest_sdk.c --mk)\n")
    done = make("CFLAGS=-O1 -Wall -Wextra -Werror", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load_image(tmp_path / "tiny").hypercall_page == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Makefile", "build", "tiny", "tiny.c"]
    assert make(cwd=tmp_path).stdout == ""          # nothing to do
    make("clean", cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Makefile", "tiny.c"]


@pytest.mark.parametrize("option, check", [
    ("--dir", lambda text: text == str(sdk.directory())),
    ("--mk", lambda text: text == str(sdk.directory() / "guest.mk")),
    ("--cflags", lambda text: {"-ffreestanding", "-mno-red-zone", f"-I{sdk.directory()}/include"} <= set(text.split())),
])
def test_what_build_systems_ask(option, check):
    """Makefiles would not find the SDK."""
    if option == "--cflags":
        need_tools()
    done = subprocess.run([sys.executable, "-m", "guest_sdk.c", option], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and check(done.stdout.strip()), (done.stdout, done.stderr)


def test_flags_compile_a_file(tmp_path):
    """The options printed for other build systems would not be those that the headers need."""
    need_tools()
    (tmp_path / "a.c").write_text("#include <guest.h>\nu64 f(void) { return time_now(); }\n")
    done = subprocess.run(["gcc", *sdk.cflags("gcc"), "-Wall", "-Werror", "-c", "a.c"], cwd=tmp_path, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (sdk.abi_include() / "xen" / "xen.h").exists()
