"""Results files: rows both ways, formats, and files that are finished or can be resumed.

This package imports nothing: the command line reads the names of formats when it starts.
"""
