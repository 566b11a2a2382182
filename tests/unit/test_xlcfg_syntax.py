"""The language of xl.cfg, apart from what keys mean: tokens, lists, escapes, +=, places, and what errors say."""

import pytest

from xenlike.toolstack import xlcfg
from xenlike.toolstack.errors import ConfigError


def plain(value):
    """A parsed value as Python strings and lists."""
    return [plain(item) for item in value.items] if isinstance(value, xlcfg.ListValue) else value.text


def read(text, **options):
    return {key: plain(setting.value) for key, setting in xlcfg.parse(text, "t.cfg", **options).settings.items()}


def failure(text, **options):
    with pytest.raises(ConfigError) as info:
        xlcfg.parse(text, "t.cfg", **options)
    return info.value


@pytest.mark.parametrize("text, expected", [
    ("", {}),
    ("\n\n  \t\n# only a comment", {}),
    ("a=1", {"a": "1"}),
    ("a = 1 ; b = 'x' # tail\n;;c=\"y\";", {"a": "1", "b": "x", "c": "y"}),
    ("a = 0x1f\nb = 017\nc = 12ab", {"a": "0x1f", "b": "017", "c": "12ab"}),
    ("dev.x_1 = 1", {"dev.x_1": "1"}),
    ("a = 'it is \"so\"'\nb = \"it's\"\nc = ''", {"a": 'it is "so"', "b": "it's", "c": ""}),
    ("a = 'no # comment; no end'", {"a": "no # comment; no end"}),
    ("a=[]", {"a": []}),
    ("a=[\n]", {"a": []}),
    ("a = [ 'x', 2, ]", {"a": ["x", "2"]}),
    ("a = [ # why\n 'x' # first\n , # comma\n\n 'y',\n # last\n]\nb=1", {"a": ["x", "y"], "b": "1"}),
    ("a = [ [ 'p=0', 'q=1' ], [ ] ]", {"a": [["p=0", "q=1"], []]}),
])
def test_takes_what_xl_takes(text, expected):
    """Wrong if a file that xl reads is read otherwise or refused here."""
    assert read(text) == expected


@pytest.mark.parametrize("text, line, says", [
    ("a", 1, "expected '=' or '+='"),
    ("a =", 1, "found the end of the file"),
    ("a = \n1", 1, "found the end of the line"),
    ("a\n= 1", 1, "expected '=' or '+='"),
    ("x=1\na = b", 2, "found 'b' (strings need quotes"),
    ("a = true", 1, "booleans are 0 and 1"),
    ("a = 1 b = 2", 1, "expected the end of the statement"),
    ("a = 'x' 'y'", 1, "expected the end of the statement"),
    ("= 1", 1, "expected a key"),
    ("'a' = 1", 1, "a statement is: key = value"),
    ("a = 16M", 1, "'16M' is neither a number nor a string (write it in quotes: \"16M\")"),
    ("a = 16m", 1, "'16m' is neither a number nor a string"),
    ("Memory = 1", 1, "keys are lower case"),
    ("a = -1", 1, "'-' in '-1' is not understood"),
    ("a = 1 + 1", 1, "no Python expressions"),
    ("import os", 1, "expected '=' or '+='"),
    ("a = 'open\nb = 1", 1, "this string is not closed"),
    ("a = 'line\\\nfeed'", 1, "this string is not closed"),
    ("a = [ 'x'\nb = 1", 2, "expected ',' or ']' in the list"),
    ("\n\na = [ 'x',\n\n", 3, "the list that starts here is not closed"),
    ("a = [ , ]", 1, "found ','"),
    ("a = [ 'x' ; 'y' ]", 1, "expected ',' or ']' in the list"),
    ("a = ]", 1, "found ']'"),
    ("a = 1\rb = 2", 1, "is not understood"),
    (r"a = '\q'", 1, r"\q is no escape"),
    (r"a = '\x4'", 1, r"\x is no escape"),
    (r"a = '\777'", 1, r"\777 is no escape"),
    (r"a = 'nul\0'", 1, "NUL"),
    ("a = 'nul\0'", 1, "NUL"),
    (r"a = '\xff'", 1, "not valid UTF-8"),
    ("a = " + "[" * 40, 1, "nested more than"),
])
def test_refuses_with_the_line_and_the_reason(text, line, says):
    """Wrong if a mistake in a file is taken, or is reported at another line or without a usable reason."""
    error = failure(text)
    assert (error.file, error.line) == ("t.cfg", line)
    assert says in str(error)


def test_an_error_is_one_line_with_file_line_and_key():
    """Wrong if the text that every command prints for a bad file loses one of its parts."""
    error = failure("a = 1\nvcpus = two\n")
    assert str(error) == ("t.cfg:2: vcpus: expected a number, a string in quotes or a list in brackets, found 'two' "
                          "(strings need quotes, and a new statement a new line or ';')")
    assert (error.key, error.column) == ("vcpus", 9)


def test_every_value_knows_its_place():
    """Wrong if an error about an item of a long list would point at the wrong line or column."""
    items = xlcfg.parse("\n  a = [ 'x',\n\t'y' ]", "t.cfg").settings["a"].value.items
    assert [(item.where.line, item.where.column) for item in items] == [(2, 9), (3, 2)]


@pytest.mark.parametrize("written, meant", [
    (r"\\ \' \"", "\\ ' \""), (r"\a\b\f\n\r\t\v", "\a\b\f\n\r\t\v"),
    (r"\x41\x7a", "Az"), (r"\101\172\60", "Az0"), (r"\xc3\xa9", "é"), ("é \\x21", "é !"),
])
def test_escapes(written, meant):
    """Wrong if a string with escapes stands for other bytes than the escapes name."""
    assert read(f'a = "{written}"') == {"a": meant}


def test_append():
    """Wrong if += drops, reorders or mixes what it should join."""
    assert read("a = [1]\na += ['b', 3]\nc = 'x '\nc += 'y'\nd += ['new']") == {
        "a": ["1", "b", "3"], "c": "x y", "d": ["new"]}
    assert xlcfg.parse("a = 1\na += 2", "t").settings["a"].appended
    assert "cannot append a single value to a list" in str(failure("a = []\na += 'x'"))
    assert str(failure("a = 'x'\na += ['y']")) == "t.cfg:2: a: cannot append a list to a single value " \
                                                  "(it was set in line 1)"


def test_the_last_of_two_wins_with_a_warning():
    """Wrong if a repeated key silently takes either value."""
    document = xlcfg.parse("a = 1\nb = 2\na = 3", "t.cfg")
    assert plain(document.settings["a"].value) == "3"
    assert [str(warning) for warning in document.warnings] == [
        "t.cfg:3: warning: a: is set again; the value of line 1 is not used"]


def test_foreign_line_ends_and_marks_are_taken_with_a_warning():
    """Wrong if a file from Windows fails with an unreadable error, or passes although xl will refuse it."""
    document = xlcfg.parse("\ufeffa = [ 1,\r\n2 ]\r\nb = 'x'\r\n".encode(), "t.cfg")
    assert {key: plain(s.value) for key, s in document.settings.items()} == {"a": ["1", "2"], "b": "x"}
    assert len(document.warnings) == 2 and all("xl does not take" in str(w) for w in document.warnings)


def test_bytes_that_are_not_utf8_may_stand_in_comments_only():
    """Wrong if an old Latin-1 comment makes a file unusable, or such bytes reach a path or a name unnoticed."""
    assert plain(xlcfg.parse(b"# caf\xe9\na = 1", "t").settings["a"].value) == "1"
    with pytest.raises(ConfigError, match="2: a: .* is not valid UTF-8"):
        xlcfg.parse(b"\na = 'caf\xe9'", "t")


@pytest.mark.parametrize("override, expected", [
    ("a=2", "2"), ("a='x y'", "x y"), ("a = [ 'x', ]", ["x"]), ("a=16M", "16M"), ("a=guest.py:Web", "guest.py:Web"),
    ("a=x=y z", "x=y z"), ("a=/p/q,raw,xvda,w", "/p/q,raw,xvda,w"), ("a+='3'", "13"), ("a+=3", "13"),
])
def test_overrides_count_last_and_silently(override, expected):
    """Wrong if a word of the command line loses to the file, warns, or needs quotes that the shell has eaten."""
    document = xlcfg.parse("a = 1", "t.cfg", overrides=[override])
    assert plain(document.settings["a"].value) == expected
    assert document.warnings == []


@pytest.mark.parametrize("override", ["a", "a=", "=1", "A=1", "a=[ 'x'", "a='x", "a=1;b"])
def test_a_bad_override_is_shown(override):
    """Wrong if a mistyped word is blamed on the file, or taken for a string that nobody meant."""
    error = failure("b = 1", overrides=[override])
    assert str(error).startswith("command line: ") and error.line is None
    assert repr(override) in str(error)


def test_several_statements_in_one_override():
    """Wrong if the form ``xl create 'a=1; b=2'`` stops working."""
    assert read("a = 0", overrides=["a=1; b='x'", "b+='y'"]) == {"a": "1", "b": "xy"}


def test_a_warning_and_an_error_survive_pickling():
    """Wrong if an error raised in a daemon cannot be handed to its client whole."""
    import pickle
    error = failure("a = 16M")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
