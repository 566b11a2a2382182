"""``xenlike bt``: the translation of a real guest, and of the classic example, as text and as a page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest
from c_images import example
from commands import xenlike

from xenlike.btview import read_translation, render_block, render_html, render_text
from xenlike.btview.example import CALLER, ROUTINE, run_example
from xenlike.btview.model import TREATMENTS
from xenlike.engine import ffi, lib


@pytest.fixture(autouse=True)
def _translator() -> None:
    why = lib.xl_bt_unavailable()
    if why != ffi.NULL:
        pytest.skip(f"no translator on this host: {ffi.string(why).decode()}")
    pytest.importorskip("capstone", reason="the viewer needs capstone")


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run_xenlike(*words: str) -> Done:
    done = xenlike(*words, cwd=Path.cwd())
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


class Page(HTMLParser):
    """Checks that elements are closed in order, and collects what could load something, and the ids and links within."""

    VOID = {"meta", "br", "hr", "link", "img", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [tag] if tag in ("script", "link", "img", "iframe") or "src" in values else []
        if "id" in values:
            assert values["id"] not in self.ids
            self.ids.add(values["id"] or "")
        if "href" in values:
            self.links.add(values["href"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_example_is_made_chained_and_run() -> None:
    """The example would show something else than what happens: blocks, then chains between them, then hits."""
    steps = list(run_example())
    assert [step.retired for step in steps][-1] == 47 and steps[-1].ended == "halted"
    made = [b.va for step in steps for b in step.made]
    assert CALLER in made and ROUTINE in made and len(made) == len(set(made))
    assert any(step.linked for step in steps)
    final = {b.va: b for b in steps[-1].translation.blocks}
    routine = final[ROUTINE]
    assert [p.text.split()[0] for p in routine.pieces] == ["mov", "cli", "and", "mov", "sti", "ret"]
    assert routine.hits == 5 and not routine.refused
    treatment = {p.text: p.treatment for p in routine.pieces}
    assert treatment["mov ebx, eax"] == "copied" and treatment["ret"] == "branch"
    assert treatment["cli"] in ("inlined", "called out") and treatment["mov cr3, rbx"] in ("inlined", "called out")


def test_every_host_byte_is_shown_once() -> None:
    """Host code would be missing from the listing, or stand there twice."""
    for block in list(run_example())[-1].translation.blocks:
        lines = [*block.before, *(line for p in block.pieces for line in p.lines), *block.cold]
        at = 0
        for line in lines:
            assert line.at == at, (hex(block.va), line)
            at += len(line.code)
        assert at == block.code_len


def test_fields_and_routines_have_names() -> None:
    """A listing would show offsets that nobody can read."""
    text = "\n".join(render_block(b) for b in list(run_example())[-1].translation.blocks)
    assert "bt.left" in text and "jmp leave" in text and re.search(r"bt\.l0\.kernel\.(read|write)\[\d+\]\.negated", text)
    assert "gs:[" not in text


def test_text_and_colour_say_the_same() -> None:
    """Colours would change the text."""
    seen = list(run_example())[-1].translation
    plain, colour = (render_text(seen, seen.hottest(), colour=c) for c in (False, True))
    assert "\x1b" not in plain
    assert [row.rstrip() for row in re.sub(r"\x1b\[\d*m", "", colour).splitlines()] == plain.splitlines()


def test_page_is_well_formed_and_self_contained(tmp_path: Path) -> None:
    """The page would load something, have a link that leads nowhere, or unclosed elements; or text of the guest would become markup."""
    seen = list(run_example())[-1].translation
    seen.title = "<script>alert(1)</script> & more"
    text = render_html(seen, seen.hottest())
    page = Page(text)
    assert not page.open and not page.loads
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links) and len(page.ids) == len(seen.blocks)
    assert not re.search(r"https?:|url\(|@import", text)
    assert seen.title in page.text and all(name in page.text for name, _ in TREATMENTS)
    assert "prefers-color-scheme: dark" in text


def test_command_shows_a_guest(tmp_path: Path) -> None:
    """``xenlike bt`` would not show what the guest executed, or would not repeat itself with the virtual clock."""
    image = str(example("hello"))
    first, second = (run_xenlike("bt", image, "--top", "5") for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert "hello from domain 1" in first.stderr
    blocks = re.findall(r"^block \d+ at (0x[0-9a-f]+): (\d+) instructions?, .* begun (\d+) time", first.stdout, re.M)
    heat = [int(nr) * int(hits) for _, nr, hits in blocks]
    assert len(blocks) == 5 and heat == sorted(heat, reverse=True) and heat[-1] > 0
    same = [re.sub(r"movabs r14, 0x[0-9a-f]+", "", done.stdout) for done in (first, second)]
    assert same[0] == same[1]
    at = run_xenlike("bt", image, "--at", blocks[0][0], "-q")
    assert at.returncode == 0 and f"at {blocks[0][0]}:" in at.stdout and at.stderr == ""
    none = run_xenlike("bt", image, "--at", "0x1", "-q")
    assert none.returncode == 1 and "no block has guest address 0x1" in none.stderr
    page = tmp_path / "page.html"
    done = run_xenlike("bt", image, "--html", str(page), "--instructions", "20000", "-q")
    assert done.returncode == 0 and not Page(page.read_text(encoding="utf-8")).open


def test_command_line_errors() -> None:
    """Wrong words would be taken for a guest."""
    assert run_xenlike("bt").returncode == 2
    assert run_xenlike("bt", "a", "b").returncode == 2
    assert run_xenlike("bt", "/nonexistent/image").returncode == 1


def test_a_refused_block_says_so() -> None:
    """The viewer would hide what the verifier has to say."""
    machine = ffi.gc(lib.xl_bare_create(1 << 20), lib.xl_bare_destroy)
    assert lib.xl_bare_engine(machine, True, 0) == 0 and lib.xl_bare_setup(machine, 64, 0) == 0
    code = bytes.fromhex("48ffc0 ebfb")         # inc rax; jmp back
    assert lib.xl_bare_write(machine, 0x1000, code, len(code)) == 0
    lib.xl_bare_set(machine, lib.xl_bare_reg(b"rip"), 0x1000)
    lib.xl_bare_run(machine, 20)
    t = lib.xl_bt_of_bare(machine)
    block = next(b for b in read_translation(t, "").blocks if b.va == 0x1000)
    assert not block.refused
    line = block.pieces[0].lines[-1]
    assert lib.xl_bt_plant_code(t, block.code + line.at, b"\x48\xff\xc4", 3) == 0        # inc rsp
    block = next(b for b in read_translation(t, "").blocks if b.va == 0x1000)
    assert block.refused and "refused by the verifier" in render_block(block)
