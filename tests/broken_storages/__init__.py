"""Storages that are each broken in one way, as real authors come to break them.

Each function breaks the Storage and the Plugin of a baked project, by nothing but what every
storage.py has, so that it can be applied to every database. `caught_by` names the tests of the
baked project that must fail for it. test_broken_storages.py runs them.

Each stands in the file that is called like the file of the first of these tests. What only one file
needs stands there, too; what several need is in support.py.
"""

from importlib import import_module
from pathlib import Path

from broken_storages.support import BROKEN, Broken

__all__ = ["BROKEN", "Broken"]

for file in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    import_module(f"{__name__}.{file.stem}")
globals().update({name: broken.break_it for name, broken in BROKEN.items()})
