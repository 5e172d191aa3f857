"""
A cache seen from outside, entry by entry.
"""
