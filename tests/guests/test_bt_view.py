"""``xenlike bt``: the translation of a real guest, and of the classic example, as text and as a page."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest
from c_images import example
from commands import environment, guest, xenlike
from pc_images import example as pc_example

from xenlike import cli, cli_bt
from xenlike.btview import Symbols, read_translation, render_block, render_html, render_text
from xenlike.btview.example import ABOUT, CALLER, ROUTINE, SOURCE, Step, run_example, told
from xenlike.btview.flags import flag_fates
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


@pytest.fixture(scope="module")
def steps() -> list[Step]:
    """The classic example, from the first instruction to the last."""
    if lib.xl_bt_unavailable() != ffi.NULL:
        pytest.skip("this host cannot translate")
    return list(run_example())


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


def test_example_is_made_run_chained_and_dropped(steps: list[Step]) -> None:
    """The example would show something else than the life of blocks: made, begun, chained, and invalid when their code is written."""
    assert steps[-1].retired == 2 + 100 * 10 and steps[-1].halted and steps[-1].wrote
    assert [b.va for b in steps[0].made] == [CALLER] and ROUTINE in [b.va for b in steps[1].made]
    assert any(step.linked and not step.wrote for step in steps)
    old, new = (next(b for b in step.made if b.va == ROUTINE) for step in (steps[1], steps[-1]))
    assert old.number in steps[-1].dropped
    final = {b.number: b for b in steps[-1].translation.blocks}
    assert final[old.number].invalid and not final[new.number].invalid and not final[new.number].refused
    assert 90 <= final[old.number].hits + final[new.number].hits <= 100         # near the end of a budget the interpreter goes on
    assert [p.text.split()[0] for p in old.pieces] == ["mov", "cli", "and", "mov", "sti", "ret"]
    assert [p.text.split()[0] for p in new.pieces] == ["mov", "cli", "and", "mov", "nop", "ret"]
    treatment = {p.text: p.treatment for p in old.pieces}
    assert treatment["mov ebx, eax"] == "copied" and treatment["ret"] == "branch"
    assert treatment["cli"] in ("inlined", "called out") and treatment["mov cr3, rbx"] in ("inlined", "called out")
    assert all(jump.text.endswith(f"block {b}") for step in steps for a, b in step.linked for jump in step.jumps(a, b))


def test_every_host_byte_is_shown_once(steps: list[Step]) -> None:
    """Host code would be missing from the listing, or stand there twice."""
    for block in steps[-1].translation.blocks:
        lines = [*block.before, *(line for p in block.pieces for line in p.lines), *block.cold]
        at = 0
        for line in lines:
            assert line.at == at, (hex(block.va), line)
            at += len(line.code)
        assert at == block.code_len
        assert set(block.stubs) <= {line.at for line in block.cold}
        if block.invalid and not block.kept:            # what is left behind the jump that its entry became is no instruction
            assert block.before[-1].text == "(overwritten)" and block.before[-2].text.startswith("jmp")


def test_the_guests_own_instruction_is_marked(steps: list[Step]) -> None:
    """Of ten host instructions nobody would see which is the guest's."""
    for block in steps[1].made:
        for piece in block.pieces:
            own = [line.text for line in piece.lines if line.own]
            assert len(own) == (piece.treatment in ("copied", "rewritten")), (piece.text, own)
            assert piece.treatment != "copied" or own == [piece.text]


def test_fields_and_routines_have_names(steps: list[Step]) -> None:
    """A listing would show offsets that nobody can read."""
    text = "\n".join(render_block(b) for b in steps[-1].translation.blocks)
    assert "bt.left" in text and "jmp leave" in text and re.search(r"bt\.slid\.kernel\.(read|write)\[\d+\]", text)
    assert "gs:[" not in text and "<routine>" in text


def fates(code: str, *leaves: int) -> list[tuple[tuple[str, ...], dict[str, str]]]:
    """Of the instructions in hexadecimal; the block may be left behind those with the numbers ``leaves``."""
    import capstone

    md = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    md.detail = True
    found = list(md.disasm(bytes.fromhex(code), 0x1000))
    return flag_fates(found, [n in leaves for n in range(len(found))])


def test_what_becomes_of_flags() -> None:
    """The page would call flags unseen that a branch out of the middle shows, or that a shift by 0 leaves."""
    cmp, jz, add, shl_cl, adc = "4839d8", "7410", "4801c8", "48d3e0", "4811d8"
    assert fates(cmp + add)[0][1] == {**dict.fromkeys(("OF", "SF", "ZF", "AF", "PF", "CF"), "unseen")}
    assert set(fates(cmp + add)[1][1].values()) == {"live out"}
    seen = fates(cmp + jz + add, 1)
    assert seen[0][1]["ZF"] == "used" and seen[0][1]["CF"] == "live out" and seen[1] == (("ZF",), {})
    assert fates(cmp + adc)[0][1]["CF"] == "used" and fates(cmp + adc)[1][0] == ("CF",)
    assert fates(cmp + shl_cl + adc)[0][1]["CF"] == "used"


def test_symbols() -> None:
    """Addresses would have the names of others; or a broken table would end the command."""
    image = example("hello").read_bytes()
    symbols = Symbols(image)
    at = symbols.address("main") or symbols.address("guest_main")
    assert at is not None and symbols.name(at + 1).endswith("+0x1") and symbols.name(0) == ""
    assert symbols.address("no such name") is None
    for n in range(0, len(image), 997):
        Symbols(image[:n]).name(at)
        Symbols(image[:n] + b"\xff" * 64 + image[n + 64:]).name(at)
    assert Symbols.of_file("/nonexistent").name(at) == "" and Symbols(b"\x7fELF").name(at) == ""


@pytest.mark.parametrize("width", [60, 80, 119, 120, 160, 240])
def test_text_fits_its_width(steps: list[Step], width: int) -> None:
    """Lines would wrap, in a terminal of this width; or colours would change the text."""
    seen = steps[-1].translation
    plain, colour = (render_text(seen, seen.blocks, colour=c, width=width) for c in (False, True))
    assert max(map(len, plain.splitlines())) <= width and "\x1b" not in plain
    assert [row.rstrip() for row in re.sub(r"\x1b\[[\d;]*m", "", colour).splitlines()] == plain.splitlines()
    for block in seen.blocks:
        for piece in block.pieces:
            assert piece.text in plain


def test_page_is_well_formed_and_self_contained(steps: list[Step]) -> None:
    """The page would load something, have a link that leads nowhere, or unclosed elements; or text of the guest would become markup."""
    seen = steps[-1].translation
    hostile = "<script>alert(1)</script> & \"more\" 'x'"
    seen.title, block = hostile, seen.blocks[0]
    block.symbol, block.refused, block.pieces[0].text, block.pieces[0].note = (hostile + c for c in "abcd")
    seen.story = [hostile + "e"]
    text = render_html(seen, seen.blocks)
    page = Page(text)
    assert not page.open and not page.loads
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links) and {f"b{b.number}" for b in seen.blocks} <= page.ids
    assert not re.search(r"https?:|url\(|@import|<script|javascript:| on[a-z]+=", text)
    assert all(hostile + c in page.text for c in "abcde") and all(name in page.text for name, _ in TREATMENTS)
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    ET.fromstring(re.sub(r"<!doctype html>|<meta [^>]*>", "", text))            # strictly: quotes, escapes, nesting


def test_page_of_the_example_tells_it_in_order(steps: list[Step]) -> None:
    """A reader would meet the blocks by heat, without the code they are of; or beside dropped ones find code that they were not made of."""
    whole = told(steps)
    assert [b.number for b in whole.blocks] == sorted(b.number for b in whole.blocks)
    first, last = (next(b for b in blocks if b.va == ROUTINE) for blocks in (whole.blocks, whole.blocks[::-1]))
    assert first.invalid and first.kept and "sti" in [p.text for p in first.pieces] and "sti" not in [p.text for p in last.pieces]
    text = render_html(whole, whole.blocks)
    assert ABOUT in Page(text).text and SOURCE in Page(text).text and "in the order in which they were made" in text
    assert f'<a href="#b{first.number}">block {first.number}</a>' in text.partition("<main")[0]
    for line in SOURCE.splitlines()[1:]:        # the listing is the code that runs
        for at, words in re.findall(r"([0-9a-f]{4})    (\w+ *[^ ]*(?:, +\S+)?)", line):
            assert any(p.va == int(at, 16) and p.text.split()[0] in (words.split()[0], "jne") for b in whole.blocks for p in b.pieces), line


def test_page_leads_from_block_to_block_and_into_stubs(steps: list[Step]) -> None:
    """One could not follow a chain, or a jump to its stub, by clicking; or the keyboard would not reach what scrolls."""
    seen = steps[-1].translation
    text = render_html(seen, seen.blocks)
    for block in seen.blocks:
        for way in block.leading():
            assert not way.leads_to or f'<a href="#b{way.leads_to}">block {way.leads_to}</a>' in text
        for piece in block.pieces:
            for line in piece.lines:
                at = f"b{block.number}-{line.target or 0:03x}"
                assert line.target is None or (f'href="#{at}"' in text and f'id="{at}"' in text)
    assert all('tabindex="0"' in tag for tag in re.findall(r'<div class="(?:scroll|host)"[^>]*>', text))
    some = render_html(seen, seen.blocks[:1])                                   # links to blocks that are not there would lead nowhere
    assert {link for link in Page(some).links if re.fullmatch(r"#b\d+", link)} <= {f"#b{seen.blocks[0].number}"}


def test_command_shows_a_guest(tmp_path: Path) -> None:
    """``xenlike bt`` would not show what the guest executed, or would not repeat itself with the virtual clock."""
    image = str(example("hello"))
    first, second = (run_xenlike("bt", image, "--top", "5", "--cold", "--width", "240") for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert "hello from domain 1" in first.stderr
    blocks = re.findall(r"^block \d+ at (0x[0-9a-f]+)(?: <\S+>)?: (\d+) instructions?\b.*begun (\d+) time", first.stdout, re.M)
    heat = [int(nr) * int(hits) for _, nr, hits in blocks]
    assert len(blocks) == 5 and heat == sorted(heat, reverse=True) and heat[-1] > 0
    assert first.stdout == second.stdout and "\x1b" not in first.stdout
    assert "Ended by poweroff" in first.stdout
    at = run_xenlike("bt", image, "--at", blocks[0][0], "-q")
    assert at.returncode == 0 and f"at {blocks[0][0]} " in at.stdout and at.stderr == ""
    named = run_xenlike("bt", image, "--at", "vsnprintf", "-q", "--width", "80")
    assert named.returncode == 0 and "<vsnprintf>" in named.stdout and max(map(len, named.stdout.splitlines())) <= 80
    page = tmp_path / "page.html"
    done = run_xenlike("bt", image, "--html", str(page), "--instructions", "20000", "-q")
    assert done.returncode == 0 and "20,000 instructions have retired" in page.read_text(encoding="utf-8")
    assert not Page(page.read_text(encoding="utf-8")).open
    assert run_xenlike("bt", image, "--html", "-", "--instructions", "20000", "-q").stdout == page.read_text(encoding="utf-8")


def test_command_shows_processors_of_a_pc() -> None:
    """Of an unmodified guest only the first processor would be seen."""
    image = str(pc_example("smp"))
    first, second = (run_xenlike("bt", image, "vcpus=2", "--vcpu", vcpu, "--top", "1", "-q") for vcpu in "01")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "smp: vCPU 0" in first.stdout and "smp: vCPU 1" in second.stdout and "block" in second.stdout


@pytest.mark.parametrize("words, status, text", [
    ([], 2, "name one configuration or image, or --example"), (["a", "b"], 2, "name one configuration or image"),
    (["--example", "a"], 2, "--example takes no image"),
    (["HELLO", "--top", "0"], 2, "--top 0 would show nothing"), (["HELLO", "--time", "0"], 2, "--time 0 would show nothing"),
    (["HELLO", "--time", "nan"], 2, "not a number of seconds"), (["HELLO", "--html", ""], 2, "--html needs the name of a file"),
    (["HELLO", "--top", str(1 << 63)], 2, "is not a number from 0"), (["HELLO", "--vcpu", str(1 << 40)], 1, "has no vCPU"),
    (["HELLO", "--html", "/"], 1, "--html /: is a folder"),
    (["/nonexistent/image"], 1, "/nonexistent/image: cannot be read: No such file or directory"), (["/"], 1, "cannot be read: Is a directory"),
    ([__file__], 1, "a guest in Python is started by a configuration"), (["TEXT"], 1, "is no kernel image, and no configuration"),
    ([sys.executable], 1, "not a Xen guest"),
    (["HELLO", "--vcpu", "7"], 1, "has no vCPU 7: it has 1"), (["HELLO", "--html", "/nonexistent/x.html"], 1, "there is no folder /nonexistent"),
    (["HELLO", "--at", "0x1"], 1, "no block has guest address 0x1"), (["HELLO", "--at", "nothing"], 1, "no such symbol, and it is no number"),
    (["PYTHON"], 1, "it is no guest of machine code"),
])
def test_errors_are_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int, text: str) -> None:
    """Wrong words would be taken for a guest, or end in a traceback."""
    if "HELLO" in words:
        words = [str(example("hello")) if word == "HELLO" else word for word in words]
    if "TEXT" in words:
        (tmp_path / "text").write_text("hello world")
        words = [str(tmp_path / "text")]
    assert cli.main(["bt", "-q", *(str(guest(tmp_path, "pass")) if word == "PYTHON" else word for word in words)]) == status
    out, err = capsys.readouterr()
    assert text in err and not out
    assert status == 2 or len(err.splitlines()) == 1


@pytest.mark.parametrize("command", ["run", "bt"])
@pytest.mark.parametrize("name, text", [("XENLIKE_ENGINE", "XENLIKE_ENGINE=x: only bt and interp are known"),
                                        ("XENLIKE_BT_OPTIONS", "XENLIKE_BT_OPTIONS=x: is not a number"),
                                        ("XENLIKE_HOST_LACKS", "XENLIKE_HOST_LACKS names x")])
def test_environment_that_means_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, name: str, text: str) -> None:
    """A mistyped variable would end the command in a traceback, or be passed over."""
    monkeypatch.setenv(name, "x")
    assert cli.main([command, str(example("hello"))]) == 1
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"xenlike: {text}") and len(err.splitlines()) == 1


@pytest.mark.parametrize("name", ["hello32", "hello64", "ticks", "smc"])
def test_command_shows_unmodified_guests(name: str) -> None:
    """An instruction that only such guests have (a port, 32-bit code, a link to another page) would end the command, or break the page."""
    image = str(pc_example(name))
    text = run_xenlike("bt", image, "-q", "--top", "100", "--cold", "--width", "100")
    assert text.returncode == 0 and not text.stderr and max(map(len, text.stdout.splitlines())) <= 100
    assert "gs:[" not in re.sub(r"(?m)^[0-9a-f]+  .*$", "", text.stdout)
    page = run_xenlike("bt", image, "-q", "--top", "100", "--html", "-")
    assert page.returncode == 0 and not Page(page.stdout).open
    assert name not in ("hello32", "hello64") or re.search(r"(?m)^[0-9a-f]+  out 0xf4, eax ", text.stdout)     # the way out


def test_a_host_without_translator_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command would fail somewhere within, or show what was never translated."""
    monkeypatch.setattr(cli_bt, "_unavailable", lambda: "the CPU lacks BMI2")
    for words in (["--example"], [str(example("hello"))]):
        assert cli.main(["bt", *words]) == 1
        out, err = capsys.readouterr()
        assert not out and err == "xenlike: this host has no binary translator, there is nothing to show: the CPU lacks BMI2\n"


def test_a_reader_that_leaves_is_no_error() -> None:
    """``xenlike bt ... | head`` would end in a traceback."""
    command = [sys.executable, "-m", "xenlike", "bt", "--example", "--cold"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(60) == 1


@pytest.mark.parametrize("more, colours", [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_on_a_terminal(more: dict[str, str], colours: bool) -> None:
    """Colours would be missing on a terminal or not to be had off, or lines be longer than it is wide."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 90, 0, 0))
    clean = {k: v for k, v in environment().items() if k not in ("COLUMNS", "NO_COLOR", "TERM")}
    command, env = [sys.executable, "-m", "xenlike", "bt", "--example"], {**clean, "TERM": "xterm", **more}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL, env=env) as process:
        os.close(theirs)
        text = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError as error:                # so Linux says that the other side has closed
                assert error.errno == errno.EIO
                break
            if not piece:
                break
            text += piece
        assert process.wait(60) == 0
    os.close(ours)
    assert (b"\x1b[" in text) == colours
    assert max(len(line) for line in re.sub(r"\x1b\[[\d;]*m", "", text.decode()).splitlines()) <= 90


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
