"""
Helper: functions replaced for the thread of a test alone. The threads of the library, which write what is pending, go
on with the real ones, whenever they happen to run.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest


def replace_here(patch: pytest.MonkeyPatch, module: Any, name: str, replacement: Callable[..., Any]) -> None:
    """Replace a function of a module for the calling thread, until the patch is undone."""
    here, real = threading.get_ident(), getattr(module, name)

    @functools.wraps(real, updated=())
    def replaced(*args: Any, **kwargs: Any) -> Any:
        return (replacement if threading.get_ident() == here else real)(*args, **kwargs)

    patch.setattr(module, name, replaced)
