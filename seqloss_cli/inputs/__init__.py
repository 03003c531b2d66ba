"""From files, stdin and command-line text to samples, one at a time.

An input that is unreadable becomes a `Rejected` record with its file and line, and the others go
on. Memory is bounded by the longest single input (`max_bytes`).
"""
