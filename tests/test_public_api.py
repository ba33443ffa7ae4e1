"""The names of `boxwright` itself: loaded on first use, whatever else was imported before."""

import subprocess
import sys


def test_public_names_load_on_first_use_and_are_listed() -> None:
    program = """
import boxwright, boxwright.core, inspect
from boxwright.core.manifest import Manifest
assert boxwright.Manifest is Manifest and "Detector" in dir(boxwright)
missing = [name for name in boxwright.__all__ if not hasattr(boxwright, name)]
assert not missing, missing
assert all(callable(getattr(boxwright, name)) for name in boxwright.__all__ if name != "__version__")
try:
    boxwright.no_such_name
except AttributeError as error:
    assert "no_such_name" in str(error)
else:
    raise AssertionError("an unknown name was found")
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_export_is_a_function_and_a_package_at_once() -> None:
    program = """
import boxwright.export.passes
import boxwright
assert boxwright.export is __import__("sys").modules["boxwright.export"]
assert callable(boxwright.export) and boxwright.export.passes
try:
    boxwright.export()
except TypeError as error:
    assert "export() missing" in str(error), error
"""
    subprocess.run([sys.executable, "-c", program], check=True)
