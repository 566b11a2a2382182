"""The syntax of xl.cfg: text in, settings with their places out.

Owns lexing and parsing of xl's configuration language and its inverse, ``dump``. Knows no key and no meaning; that is
``config``. Pure: no file is touched. Called by ``config`` only, and by tools that write configurations.

The language, as xl's own scanner has it (tools/libs/util of Xen 4.17)::

    file      = { [ key ( "=" | "+=" ) value ] ( newline | ";" ) }
    key       = a-z, then a-z 0-9 . _                   only lower case
    value     = number | 'string' | "string" | list
    number    = 0-9, then 0-9 a-f x                     kept as text; a string and a number differ in nothing else
    list      = "[" [ value { "," value } [ "," ] ] "]"  newlines and comments anywhere between its parts
    comment   = "#" to the end of the line, counts as the newline
    escapes   = \\\\ \\' \\" \\a \\b \\f \\n \\r \\t \\v \\xHH \\OOO; any other is an error

A newline may stand inside a list, nowhere else; a string ends on its line. ``key += value`` appends to an earlier
string or list. Of two ``key = value`` the later one counts. Where this reader differs from xl: it warns about the
second; ``\\xHH`` and ``\\OOO`` give the byte they name (xl refuses or drops them); a comment may end the file without
a newline; CRLF line ends and a byte-order mark are taken, with a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Union

from .errors import ConfigError, ConfigWarning, Location, show

MAX_NESTING = 16        # xl.cfg needs two levels (vnuma); the bound keeps recursion harmless

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Scalar:
    """A string or number; ``text`` is what was meant (escapes resolved), ``quoted`` whether it stood in quotes."""

    text: str
    quoted: bool
    where: Location


@dataclass(frozen=True)
class ListValue:
    """A bracketed list, in order."""

    items: tuple["Value", ...]
    where: Location


Value = Union[Scalar, ListValue]


@dataclass(frozen=True)
class Setting:
    """The final value of one key. ``appended``: its last statement was ``+=``, which xl refuses for numbers."""

    key: str
    value: Value
    appended: bool = False


@dataclass
class Document:
    """All settings of a file, in order of first appearance, and what was odd about them."""

    settings: dict[str, Setting] = field(default_factory=dict)
    warnings: list[ConfigWarning] = field(default_factory=list)


# --- tokens ---------------------------------------------------------------------------------------------------------

class _Token(NamedTuple):
    kind: str           # ident number string punct newline end
    text: str
    where: Location
    offset: int


_TOKEN = re.compile(r"""
    (?P<ident>   [a-z][._0-9a-z]* )
  | (?P<number>  [0-9][0-9a-fx]* )
  | (?P<space>   [ \t]+ )
  | (?P<punct>   \+= | [,\[\]=;] )
  | (?P<newline> \r?\n | \#[^\n]*(?:\n|\Z) )
  | (?P<string>  '(?:[^'\\\n]|\\.)*' | "(?:[^"\\\n]|\\.)*" )
""", re.VERBOSE)

_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|.)|([^\\]+)", re.DOTALL)
_SIMPLE_ESCAPES = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, "'": 39, '"': 34}


def _tokens(text: str, file: str) -> Iterator[_Token]:
    position, line, line_start = 0, 1, 0
    while position < len(text):
        where = Location(file, line, position - line_start + 1)
        match = _TOKEN.match(text, position)
        if match is None:
            raise _lexical_error(text, position, where)
        kind, lexeme, position = match.lastgroup, match.group(), match.end()
        if kind == "newline":
            yield _Token(kind, lexeme, where, match.start())
            line, line_start = line + 1, position
        elif kind == "string":
            yield _Token(kind, _dequote(lexeme[1:-1], where), where, match.start())
        elif kind != "space":
            yield _Token(kind, lexeme, where, match.start())
    yield _Token("end", "", Location(file, line, position - line_start + 1), position)


def _word_at(text: str, position: int) -> str:
    """The run of characters around ``position`` that a reader sees as one word."""
    before = re.search(r"[^\s,;=\[\]'\"#]*\Z", text[max(0, position - 64):position]).group()
    return before + re.match(r"[^\s,;=\[\]'\"#]*", text[position:position + 64]).group()


def _lexical_error(text: str, position: int, where: Location) -> ConfigError:
    character = text[position]
    word = character if character.isspace() else _word_at(text, position)
    if character in "'\"":
        return ConfigError(where, None, "this string is not closed",
                           hint="a string ends on the line it starts on; write \\n for a newline in it")
    if word[:1].isdigit():
        return _neither_number_nor_string(word, where, None)
    if character.isupper():
        hint = "keys are lower case, and other words are strings: put them in quotes"
    elif character in "+-.():":
        hint = "xl.cfg has only numbers, strings and lists: no Python expressions, and other words in quotes"
    else:
        hint = "put strings in quotes"
    return ConfigError(where, None, f"{show(character)} in {show(word or character)} is not understood", hint=hint)


def _neither_number_nor_string(word: str, where: Location, key: str | None) -> ConfigError:
    return ConfigError(where, key, f"{show(word)} is neither a number nor a string",
                       hint=f'write it in quotes: "{word}"' if word.isprintable() else "put strings in quotes")


def _dequote(body: str, where: Location) -> str:
    """The string that ``body`` (without its quotes) denotes. Escapes name bytes; the bytes together are UTF-8."""
    if "\\" not in body:
        return _checked(body, where)
    out = bytearray()
    for escape, plain in _ESCAPE.findall(body):
        if plain:
            out += _checked(plain, where).encode()
        elif escape in _SIMPLE_ESCAPES:
            out.append(_SIMPLE_ESCAPES[escape])
        elif len(escape) == 3 and escape[0] == "x":
            out.append(int(escape[1:], 16))
        elif escape[0] in "01234567" and int(escape, 8) < 256:
            out.append(int(escape, 8))
        else:
            raise ConfigError(where, None, f"{chr(92)}{escape if escape.isprintable() else show(escape)} is no escape "
                              "in a string",
                              hint=r"known are \\ \' \" \a \b \f \n \r \t \v \xHH \OOO; write \\ for a backslash")
    return _checked(out.decode("utf-8", "surrogateescape"), where)


def _checked(text: str, where: Location) -> str:
    """``text`` if it can be shown and passed to the system. Lone surrogates stand for bytes that are not UTF-8."""
    if "\0" in text:
        raise ConfigError(where, None, "a string cannot contain the NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(where, None, f"{show(text)} is not valid UTF-8",
                          hint="save the file as UTF-8") from None
    return text


# --- the parser -----------------------------------------------------------------------------------------------------

class _Parser:
    """One pass over the tokens of one text, handing each statement to ``document``."""

    def __init__(self, text: str, file: str, document: Document, *, override: bool) -> None:
        self.tokens = _tokens(text, file)
        self.text, self.document, self.override = text, document, override
        self.key: str | None = None
        self.next = self._scan()

    def _scan(self) -> _Token:
        try:
            return next(self.tokens)
        except ConfigError as error:        # the scanner does not know which statement it is in
            raise ConfigError(error.where, self.key, error.message, hint=error.hint) from None

    def _advance(self) -> _Token:
        token, self.next = self.next, self._scan()
        return token

    def _at(self, kind: str, text: str | None = None) -> bool:
        return self.next.kind == kind and (text is None or self.next.text == text)

    def _unexpected(self, wanted: str) -> ConfigError:
        token = self.next
        found = {"newline": "the end of the line", "end": "the end of the file"}.get(token.kind) or show(token.text)
        hint = None
        if token.kind == "ident" and self.key is not None:
            word = _word_at(self.text, token.offset)
            if word[:1].isdigit():
                return _neither_number_nor_string(word, token.where, self.key)
            hint = ("booleans are 0 and 1" if token.text in ("true", "false", "yes", "no")
                    else "strings need quotes, and a new statement a new line or ';'")
        elif self.key is None and token.kind in ("string", "number"):
            hint = "a statement is: key = value"
        return ConfigError(token.where, self.key, f"expected {wanted}, found {found}", hint=hint)

    def file(self) -> None:
        while not self._at("end"):
            if self._at("newline") or self._at("punct", ";"):
                self._advance()
            else:
                self._assignment()

    def _assignment(self) -> None:
        if not self._at("ident"):
            raise self._unexpected("a key")
        self.key = self.next.text
        where = self._advance().where
        if not (self._at("punct", "=") or self._at("punct", "+=")):
            raise self._unexpected("'=' or '+='")
        append = self._advance().text == "+="
        value = self._value(0)
        if not (self._at("newline") or self._at("end") or self._at("punct", ";")):
            raise self._unexpected("the end of the statement")
        _store(self.document, self.key, value, append=append, override=self.override, where=where)
        self.key = None

    def _value(self, depth: int) -> Value:
        if self._at("string") or self._at("number"):
            token = self._advance()
            return Scalar(token.text, token.kind == "string", token.where)
        if not self._at("punct", "["):
            raise self._unexpected("a number, a string in quotes or a list in brackets")
        where = self._advance().where
        if depth == MAX_NESTING:
            raise ConfigError(where, self.key, f"lists are nested more than {MAX_NESTING} deep")
        items: list[Value] = []
        self._skip_newlines()
        while not self._at("punct", "]"):
            self._in_list(where)
            items.append(self._value(depth + 1))
            self._skip_newlines()
            if self._at("punct", ","):
                self._advance()
                self._skip_newlines()
            elif not self._at("punct", "]"):
                self._in_list(where)
                raise self._unexpected("',' or ']' in the list")
        self._advance()
        return ListValue(tuple(items), where)

    def _skip_newlines(self) -> None:
        while self._at("newline"):
            self._advance()

    def _in_list(self, opened: Location) -> None:
        if self._at("end"):
            raise ConfigError(opened, self.key, "the list that starts here is not closed", hint="']' is missing")


def _store(document: Document, key: str, value: Value, *, append: bool, override: bool, where: Location) -> None:
    earlier = document.settings.get(key)
    if append and earlier is not None:
        value = _concatenate(key, earlier.value, value)
    elif earlier is not None and not override:
        document.warnings.append(ConfigWarning(
            where, key, f"is set again; the value of line {earlier.value.where.line} is not used",
            "use += to append" if isinstance(value, ListValue) else None))
    document.settings[key] = Setting(key, value, append)


def _concatenate(key: str, first: Value, second: Value) -> Value:
    if isinstance(first, ListValue) and isinstance(second, ListValue):
        return ListValue(first.items + second.items, second.where)
    if isinstance(first, Scalar) and isinstance(second, Scalar):
        return Scalar(first.text + second.text, True, second.where)
    kinds = ("a list", "a single value") if isinstance(second, ListValue) else ("a single value", "a list")
    raise ConfigError(second.where, key, f"cannot append {kinds[0]} to {kinds[1]}",
                      hint=f"it was set in line {first.where.line}" if first.where.line else None)


def parse(text: str | bytes, file: str, *, overrides: Iterable[str] = ()) -> Document:
    """The settings of a configuration text.

    ``file`` is the name to show in messages. ``overrides`` are further ``key=value`` statements from a command line;
    they count after the text, replace without a warning, and, since a shell eats quotes, may leave them out of a
    plain string (``memory=16M``). Raises ``ConfigError``.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")   # bytes that are not UTF-8 may stand in comments
    document = Document()
    if text.startswith("\ufeff"):
        text = text[1:]
        document.warnings.append(ConfigWarning(Location(file, 1, 1), None, "the file starts with a byte-order mark, "
                                               "which xl does not take"))
    if "\r\n" in text:
        line = text.count("\n", 0, text.index("\r\n")) + 1
        document.warnings.append(ConfigWarning(Location(file, line), None,
                                               "lines end with CR LF, which xl does not take"))
    _Parser(text, file, document, override=False).file()
    for override in overrides:
        _apply_override(document, override)
    return document


_BARE = re.compile(r"\s*([a-z][._0-9a-z]*)\s*(\+?=)\s*([^\s'\"\[;][^;\n]*)", re.ASCII)


def _apply_override(document: Document, text: str) -> None:
    trial = Document(dict(document.settings))
    try:
        _Parser(text, COMMAND_LINE, trial, override=True).file()
        document.settings = {key: replace(setting, value=_without_line(setting.value))
                             for key, setting in trial.settings.items()}
    except ConfigError as error:
        where = Location(COMMAND_LINE)
        bare = _BARE.fullmatch(text)
        if bare is None:
            raise ConfigError(where, error.key, f"{error.message}, in {show(text)}", hint=error.hint) from None
        key, operator, value = bare.groups()
        _store(document, key, Scalar(_checked(value.rstrip(), where), True, where),
               append=operator == "+=", override=True, where=where)


def _without_line(value: Value) -> Value:
    """``value`` with the meaningless line number of a command-line word taken off."""
    if isinstance(value, ListValue):
        value = replace(value, items=tuple(map(_without_line, value.items)))
    return replace(value, where=Location(COMMAND_LINE)) if value.where.file == COMMAND_LINE else value


# --- the inverse ----------------------------------------------------------------------------------------------------

def dump(settings: Mapping[str, object]) -> str:
    """Text that ``parse`` reads back as ``settings``: keys to strings, integers and (nested) lists of them."""
    return "".join(f"{key} = {_dump_value(value)}\n" for key, value in settings.items())


def _dump_value(value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int):
        return str(value) if value >= 0 else f'"{value}"'   # the language has no sign; strings are read as numbers
    if isinstance(value, str):
        named = {chr(code): "\\" + name for name, code in _SIMPLE_ESCAPES.items() if name != "'"}
        return '"' + "".join(named.get(c) or (f"\\x{ord(c):02x}" if c < " " or c == "\x7f" else c) for c in value) + '"'
    if isinstance(value, (list, tuple)):
        return "[ " + ", ".join(map(_dump_value, value)) + " ]" if value else "[ ]"
    raise TypeError(f"xl.cfg has no {type(value).__name__} values: {value!r}")
