"""
How files are read: the open file, its blocks, files that can only be read through in order, whole local copies.

May import, of ``remote``: its modules at the top, and ``metadata``.
"""
