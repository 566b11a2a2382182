"""Builds the C core with cffi; everything else is in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["xenlike/_build.py:ffibuilder"])
