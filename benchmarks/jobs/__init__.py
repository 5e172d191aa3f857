"""
The jobs. Each is given a directory of its own, measures, and returns a dictionary that can be written as JSON.
"""
