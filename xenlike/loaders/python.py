"""Loads Python guests: ``kernel = "guest.py:ClassName"``.

Owns: nothing; each load makes a module of its own name, so that two files called guest.py (or one file in two domains) share no
state. Called by: ``Host.create``.
"""

from __future__ import annotations

import importlib.util
import itertools
import pathlib
import sys

from .errors import LoadError

__all__ = ["LoadError", "load_class"]

_serial = itertools.count(1)


def load_class(path: pathlib.Path, classname: str) -> type:
    """The class ``classname`` in the file ``path``, from a fresh module. Raises LoadError.

    The file's folder is importable while the module is executed, so that a guest may be split into files.
    """
    name = f"xenlike_guest_{next(_serial)}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LoadError(f"'{path}' cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module          # dataclasses and pickling look modules up by name
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError:
        del sys.modules[name]
        raise LoadError(f"'{path}' does not exist") from None
    except Exception as error:
        del sys.modules[name]
        raise LoadError(f"'{path}' failed to load: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    guest = getattr(module, classname, None)
    if not isinstance(guest, type):
        classes = [n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == name]
        raise LoadError(f"'{path}' has no class {classname}" + (f" (it has {', '.join(classes)})" if classes else ""))
    return guest
