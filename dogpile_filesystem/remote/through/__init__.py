"""
How files are changed at the source at once: written through, removed, renamed, copied.

May import, of ``remote``: its modules at the top, ``metadata`` and ``reading``.
"""
