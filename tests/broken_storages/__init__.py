"""Storages that are each broken in one way that real authors might break them.

Each function breaks the Storage and the Plugin of a baked project. It uses only what every
storage.py has, so it works with every database. `caught_by` names the tests of the baked project
that must fail. test_broken_storages.py runs them.

Each function is in the file named after the file of the first of these tests, together with
helpers that only that file needs. Shared helpers are in support.py.
"""

from importlib import import_module
from pathlib import Path

from broken_storages.support import BROKEN, Broken

__all__ = ["BROKEN", "Broken"]

for file in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    import_module(f"{__name__}.{file.stem}")
globals().update({name: broken.break_it for name, broken in BROKEN.items()})
