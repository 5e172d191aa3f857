"""
Helper: what a poller reports, as the tests compare it.
"""

from __future__ import annotations

import os
from typing import Any


def reported(poller: Any, root: str, limit: int | None = None) -> dict[str, str]:
    """What a call reports, by the path below the root. A subject that is reported twice fails the test."""
    events = poller.get_new_events(limit)
    found = {os.path.relpath(subject, root): event for subject, event in events}
    assert len(found) == len(events), f"a subject was reported twice: {events}"
    return found
