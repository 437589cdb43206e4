"""What an operation costs, measured without a clock: Python steps, memory and connections."""

import gc
import os
import stat
import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any


def steps(use: Callable[[], object]) -> int:
    """Return how many lines and calls of Python this takes, in this thread."""
    count = 0

    def trace(_frame: FrameType, _event: str, _argument: Any) -> Any:
        nonlocal count
        count += 1
        return trace

    before, collecting = sys.gettrace(), gc.isenabled()
    gc.disable()  # It would run the finalizers of what other tests have left.
    sys.settrace(trace)
    try:
        use()
    finally:
        sys.settrace(before)
        if collecting:
            gc.enable()
    return count


def memory(use: Callable[[], object]) -> int:
    """Return the peak memory in bytes that this takes."""
    tracemalloc.start()
    try:
        use()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def connections() -> int:
    """Return how many connections to servers this process has open. Not available on Windows."""
    count = 0
    for name in os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"):
        try:
            count += stat.S_ISSOCK(os.fstat(int(name)).st_mode)
        except OSError:
            continue  # This is the one that listed them.
    return count
