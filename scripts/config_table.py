#!/usr/bin/env python3
"""Write docs/config-keys.md, the reference of configuration keys, from the tables that the parser itself uses.

Without an argument the file is written; ``--check`` only compares, and exits 1 if it is not current. The test
tests/unit/test_xlcfg_docs.py calls ``render``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "docs" / "config-keys.md"
sys.path.insert(0, str(ROOT))

from xenlike.toolstack import disk, values, vif                     # noqa: E402
from xenlike.toolstack.config import KEYS, Key                      # noqa: E402
from xenlike.toolstack.cpus import CpuidPolicy                      # noqa: E402
from xenlike.toolstack.spec import Param                            # noqa: E402

HEAD = """\
# Configuration keys

<!-- Written by scripts/config_table.py from the parser's own tables: change those, then run it. -->

A domain is described by a file in xl's language (`xl.cfg`): `key = value`, one statement a line or separated by `;`.
Values are numbers (decimal, `0x` hexadecimal, `0` octal), strings in single or double quotes, and lists in brackets,
which may run over several lines and end with a comma. `#` starts a comment. `key += value` appends to a string or a
list. Escapes in strings are `\\\\ \\' \\" \\a \\b \\f \\n \\r \\t \\v \\xHH \\OOO`. A word `key=value` on the
command line counts as if it stood at the end of the file. Paths are relative to the config file. A key that is not in
this table is named in a warning and has no effect.

| key | value | unit | default | meaning |
|---|---|---|---|---|
"""

SECTIONS: tuple[tuple[str, str, Mapping[str, Param]], ...] = (
    ("disk", """\
Each string is `target,format,vdev,access`, any part of which may be left empty, or `name=value` and flags, or a
mixture: `disk.img,raw,xvda,rw`, `/srv/cd.iso,,xvdb,cdrom`, `format=raw,vdev=xvda1,access=ro,target=/srv/a,b.img`.
The old forms `phy:/dev/vg/web,xvda,w` and `file:/srv/web.img,xvda,w` are taken too.
""", disk.PARAMS),
    ("vif", """\
Each string is a list of `name=value`, all of which may be left out: `''`, `'mac=00:16:3e:01:02:03,bridge=xenbr0'`.
""", vif.PARAMS),
    ("channel", "Each string is a list of `name=value`.\n", values.CHANNEL_PARAMS),
    ("p9", "Each string is a list of `name=value`.\n", values.P9_PARAMS),
)


def _default(key: Key) -> str:
    if key.absent:
        return key.absent
    if key.default is None or key.default == () or key.default == CpuidPolicy():
        return "none"
    return f"`{int(key.default) if isinstance(key.default, bool) else key.default}`"


def render() -> str:
    """The text of docs/config-keys.md."""
    rows = "".join(f"| `{key.name}` | {key.kind.shape} | {key.unit} | {_default(key)} | {key.doc} |\n"
                   for key in KEYS.values())
    sections = "".join(
        f"\n## {name}\n\n{intro}\n| parameter | meaning |\n|---|---|\n"
        + "".join(f"| `{param}{'' if row.flag else '='}` | {row.doc}{'' if row.used else ' (no effect here)'} |\n"
                  for param, row in params.items())
        for name, intro, params in SECTIONS)
    return HEAD + rows + sections


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print("usage: config_table.py [--check]", file=sys.stderr)
        return 2
    if not arguments:
        OUTPUT.parent.mkdir(exist_ok=True)
        OUTPUT.write_text(render(), encoding="utf-8")
    elif not OUTPUT.exists() or OUTPUT.read_text(encoding="utf-8") != render():
        print(f"{OUTPUT.relative_to(ROOT)} is not current: run scripts/config_table.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
