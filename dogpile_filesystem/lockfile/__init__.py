"""
The one lock file of a cache directory: its locks and its tables.
"""
