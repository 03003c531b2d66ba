"""`python -m seqloss_cli`."""

from seqloss_cli.cli.main import main

main()
