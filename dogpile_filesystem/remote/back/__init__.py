"""
How files are written back: accepted on the local disk, sent to the source later; and what is unsent meanwhile.

May import, of ``remote``: its modules at the top, ``metadata``, ``reading`` and ``through``.
"""
