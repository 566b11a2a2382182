#!/usr/bin/env python3
"""Write docs/decode-table.md, the tables of x86 instruction forms, from csrc/x86/forms.def and forms_sse.def.

Without an argument the file is written; ``--check`` only compares, and exits 1 if it is not current. The test
tests/unit/test_x86_decode_table.py calls ``render``.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
X86 = ROOT / "csrc" / "x86"
OUTPUT = ROOT / "docs" / "decode-table.md"

MAPS = {"1": "One-byte opcodes", "0F": "Opcodes 0F", "0F38": "Opcodes 0F 38", "0F3A": "Opcodes 0F 3A", "VEX0F38": "VEX, map 0F 38", "VEX0F3A": "VEX, map 0F 3A"}
HEAD = """\
# Instruction forms

<!-- Written by scripts/decode_table.py from csrc/x86/forms.def and forms_sse.def: change those, then run it. -->

What the x86 engine decodes, one row a *form*: an opcode with its operands. What is not here raises #UD, as it does on a CPU whose CPUID
does not offer it. Operands are in the notation of the Intel SDM, volume 2, appendix A.2; `csrc/x86/insn.h` lists the codes.

- **opcode**: prefix that belongs to it (NP: none of 66, F2, F3), map, opcode, `/n` modrm.reg, `m`/`r` memory or register only, `W0`/`W1`.
- **modes**: 16, 32, 64; `16p`: not in real mode. CPL 0: privileged.
- **feature**: the CPUID feature it needs, see `csrc/x86/cpuid.c`.
- **op**: the file under `csrc/x86` whose `x86_op_...` executes it.
- **tested by**: *lockstep*: random sequences against this machine's CPU (`tests/lockstep`); *unicorn*: against Unicorn in the 16- and 32-bit
  modes (`tests/lockstep/test_unicorn.py`); otherwise a file of `tests/unit`.

"""


class Form(NamedTuple):
    """A row of forms.def."""

    op: str
    mnemonic: str
    map: str
    first: str
    last: str
    prefix: str
    mod: str
    ext: str
    w: str
    feature: str
    attr: str
    operands: tuple[str, ...]


def forms() -> list[Form]:
    """All rows, in the order of the table that the decoder uses."""
    found = []
    for name in ("forms.def", "forms_sse.def"):
        for row in re.findall(r"^FORM\((.*)\)$", (X86 / name).read_text(encoding="utf-8"), re.M):
            cells = [cell.strip() for cell in row.split(",")]
            found.append(Form(cells[0], cells[1].strip('"'), *cells[2:11], tuple(cell for cell in cells[11:] if cell)))
    return found


def op_files() -> dict[str, str]:
    """x86_op_<name> -> the file that defines it."""
    found = {}
    for path in sorted(X86.glob("*.c")):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"^const struct x86_op x86_op_(\w+)\b", text, re.M) + re.findall(r"\b[A-Z0-9_]+\((\w+)[,)]", text):
            found.setdefault(name, path.name)
    return found


def in_lockstep(form: Form) -> bool:
    """What tests/lockstep/gen.c takes (gen_covers)."""
    amd_differs = form.mnemonic == "sysexit" or (form.mnemonic == "nop" and (form.map, form.first) == ("0F", "0D"))
    return "F_TEST_NEVER" not in form.attr and "F_NO64" not in form.attr and not amd_differs


#: Ops of which a process on this CPU cannot show everything: the file of tests/unit that has them.
TESTS = {op: file for file, ops in {
    "test_x86_system.py": "pop_seg mov_seg lseg int_n int1 lar lsl verr verw",
    "test_x86_far.py": "callf jmpf retf iret syscall sysret sysenter sysexit",
    "test_x86_control.py": "sldt str sgdt sidt smsw rdtsc rdtscp rdpmc cpuid rdrand",
    "test_x86_decode.py": "nop",
}.items() for op in ops.split()}


def tests_of(form: Form) -> str:
    """The last column."""
    if in_lockstep(form):
        return "lockstep"
    return TESTS.get(form.op, "unicorn" if "F_NO64" in form.attr and "F_TEST_NEVER" not in form.attr else "–")


def opcode_cell(form: Form) -> str:
    """E.g. ``66 0F 58`` or ``80 /4``."""
    cell = {"ANY": "", "66F2": "66 F2 "}.get(form.prefix, form.prefix + " ")
    cell += {"1": "", "0F38": "0F 38 ", "0F3A": "0F 3A ", "VEX0F38": "VEX 0F 38 ", "VEX0F3A": "VEX 0F 3A "}.get(form.map, form.map + " ")
    cell += form.first if form.first == form.last else f"{form.first}–{form.last}"
    if form.ext.startswith("64"):
        cell += f" {0xc0 + int(form.ext.split('+')[1], 0):02X}"
    elif form.ext != "-1":
        cell += f" /{form.ext}"
    cell += {"MEM": " m", "REG": " r"}.get(form.mod, "")
    return cell + ("" if form.w == "ANY" else f" W{form.w}")


def modes_cell(form: Form) -> str:
    """E.g. ``16 32 64, CPL 0``."""
    modes = "64" if "F_ONLY64" in form.attr else ("16p 32" if "F_NOREAL" in form.attr else "16 32") + ("" if "F_NO64" in form.attr else " 64")
    return modes + (", CPL 0" if "F_CPL0" in form.attr else "") + (", lock" if "F_LOCK" in form.attr else "")


def render() -> str:
    """The page."""
    files, rows = op_files(), forms()
    by = Counter(tests_of(form) for form in rows)
    out = [HEAD, f"{len(rows)} forms: " + ", ".join(f"{n} {name}" for name, n in by.most_common()) + ".\n"]
    for name, title in MAPS.items():
        out.append(f"\n## {title}\n\n| opcode | instruction | modes | feature | op | tested by |\n|---|---|---|---|---|---|\n")
        for form in sorted((f for f in rows if f.map == name), key=lambda f: int(f.first, 16)):
            feature = "" if form.feature == "0" else form.feature
            text = " ".join([form.mnemonic.replace("%c", "*cc*").replace("%a", "\\[e,r\\]"), ", ".join(form.operands)]).strip()
            out.append(f"| {opcode_cell(form)} | {text} | {modes_cell(form)} | {feature} | {form.op}: {files.get(form.op, '?')} | {tests_of(form)} |\n")
    return "".join(out)


def main() -> int:
    """0, or 1 if ``--check`` found the page not current."""
    page = render()
    if "--check" in sys.argv[1:]:
        return int(not OUTPUT.exists() or OUTPUT.read_text(encoding="utf-8") != page)
    OUTPUT.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
