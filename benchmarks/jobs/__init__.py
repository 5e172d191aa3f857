"""
The jobs. Each takes a directory of its own, measures, and returns a dictionary that can be written as JSON.
"""
