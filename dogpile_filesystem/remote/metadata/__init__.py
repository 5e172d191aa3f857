"""
What the cache knows of the source's files and directories: versions, metadata, listings, and what was changed.

May import, of ``remote``: its modules at the top.
"""
