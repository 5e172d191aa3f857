"""
Helper: how long a test waits for what must happen.
"""

from __future__ import annotations

#: Seconds after which something that must happen is taken never to happen. It takes milliseconds on a quiet machine; a
#: busy machine, or a slow one, may need a thousand times as long.
PATIENCE = 300
