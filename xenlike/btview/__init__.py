"""Guest code and its translation side by side: what the binary translator (``csrc/bt``) made of each instruction.

Owns the reading of a translator's tables (``reader``, into the objects of ``model``) and two ways to show them: ``text`` for terminals,
``html`` as one page; ``example`` is a machine to look at. Called by: ``xenlike bt`` (``xenlike.cli_bt``), tests. Needs capstone.
"""

from xenlike.btview.html import render_html
from xenlike.btview.model import Block, Line, Piece, Translation, Way
from xenlike.btview.reader import read_translation
from xenlike.btview.symbols import Symbols
from xenlike.btview.text import render_block, render_text

__all__ = ["Block", "Line", "Piece", "Symbols", "Translation", "Way", "read_translation", "render_block", "render_html", "render_text"]
