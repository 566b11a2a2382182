"""Builds the C core with cffi, and puts the ABI headers beside the SDK for C guests; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HEADERS = Path("csrc/include/xen")


class BuildPy(build_py):
    """The headers have one home, csrc/include: in an installed package, where there is no csrc, C guests find this copy."""

    def run(self):
        super().run()
        if not getattr(self, "editable_mode", False):
            shutil.copytree(HEADERS, Path(self.build_lib) / "guest_sdk/c/include/xen", dirs_exist_ok=True)


setup(cffi_modules=["xenlike/_build.py:ffibuilder"], cmdclass={"build_py": BuildPy})
