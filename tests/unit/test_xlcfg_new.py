"""``xenlike new``: the project it writes is whole and fits together, and nothing of the user's is overwritten."""

import asyncio
import io
import sys
import types

import pytest

from xenlike.toolstack import check_supported, load_config
from xenlike.toolstack.new import SkeletonError, class_name, create_skeleton


def test_what_is_written(tmp_path):
    """Wrong if a file is missing, has a placeholder left in it, or the two commands are not in the README."""
    files = create_skeleton("web-1", tmp_path / "projects" / "web")
    assert sorted(path.name for path in files) == ["README.md", "guest.py", "test_guest.py", "web-1.cfg"]
    assert sorted((tmp_path / "projects" / "web").iterdir()) == sorted(files)
    for path in files:
        assert "$" not in path.read_text() and path.read_text().endswith("\n")
    readme = next(path for path in files if path.name == "README.md").read_text()
    assert "xenlike run web-1.cfg" in readme and "python -m pytest" in readme


def test_the_configuration_is_one_this_version_runs(tmp_path):
    """Wrong if the skeleton's own configuration has an error or a warning."""
    create_skeleton("web", tmp_path / "web")
    config, warnings = load_config(tmp_path / "web" / "web.cfg")
    assert (config.name, config.memory, config.kernel.classname) == ("web", 16 << 20, "Web")
    assert warnings == [] and check_supported(config) == []


def test_the_guest_says_hello(tmp_path, monkeypatch):
    """Wrong if the written guest does not run to its end on an SDK with the documented face, or not by await."""
    class Guest:
        domid = 7

        def __init__(self):
            self.out = io.StringIO()
            self.console = types.SimpleNamespace(print=lambda *words: print(*words, file=self.out))
            self.xenstore = types.SimpleNamespace(read=self.read)

        async def read(self, path):
            await asyncio.sleep(0)
            return {"name": "web"}[path]

    monkeypatch.setitem(sys.modules, "guest_sdk", types.SimpleNamespace(Guest=Guest))
    create_skeleton("web", tmp_path / "web")
    names = {}
    exec(compile((tmp_path / "web" / "guest.py").read_text(), "guest.py", "exec"), names)
    guest = names["Web"]()
    assert asyncio.run(guest.main()) == 0
    assert guest.out.getvalue() == "hello from domain 7\nmy name is web\n"
    compile((tmp_path / "web" / "test_guest.py").read_text(), "test_guest.py", "exec")
    assert "from guest import Web\n" in (tmp_path / "web" / "test_guest.py").read_text()


@pytest.mark.parametrize("name, expected", [("web", "Web"), ("web-server", "WebServer"), ("a.b_c9", "ABC9"),
                                            ("X", "X")])
def test_class_names(name, expected):
    """Wrong if the class is not a Python name, or not one a person would have chosen."""
    assert class_name(name) == expected and expected.isidentifier()


@pytest.mark.parametrize("name", ["", "1a", "-x", "a b", "a/b", "..", "é", "a\n", "Domain-0", "a" * 65, "a$b", "a."])
def test_bad_names(name, tmp_path):
    """Wrong if a name is taken that cannot be a domain, a file and a class, or something is written for it."""
    with pytest.raises(SkeletonError):
        create_skeleton(name, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_places(tmp_path, monkeypatch):
    """Wrong if anything of the user's can be overwritten, or an empty directory is refused."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "guest.py").write_text("mine")
    with pytest.raises(SkeletonError, match="is not empty"):
        create_skeleton("web", tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["guest.py"]
    assert (tmp_path / "full" / "guest.py").read_text() == "mine"
    with pytest.raises(SkeletonError, match="cannot be used"):
        create_skeleton("web", tmp_path / "full" / "guest.py")
    with pytest.raises(SkeletonError, match="cannot be used"):
        create_skeleton("web", tmp_path / "full" / "guest.py" / "below")
    (tmp_path / "empty").mkdir()
    assert create_skeleton("web", tmp_path / "empty")
    monkeypatch.chdir(tmp_path)
    assert create_skeleton("here")[0].parent.name == "here"


def test_languages(tmp_path):
    """Wrong if a C project lacks what builds it, or its names are not filled in."""
    files = create_skeleton("web-1", tmp_path / "c", lang="c")
    assert sorted(path.name for path in files) == [".gitignore", "Makefile", "README.md", "guest.c", "test_guest.py", "web-1.cfg"]
    assert (tmp_path / "c" / "Makefile").read_text() == (
        "GUEST = web-1.elf\nSRCS  = guest.c\ninclude $(shell $(or $(PYTHON),python3) -m guest_sdk.c --mk)\n")
    assert not [path for path in files if "$name" in path.read_text()]
    with pytest.raises(SkeletonError, match="unknown language 'pyton'.*python"):
        create_skeleton("web", tmp_path / "x", lang="pyton")
    assert not (tmp_path / "x").exists()
