"""
One bounded directory of entries.
"""
