"""The command line: one file per command; options, wiring, exit codes. Nothing heavy at import."""
