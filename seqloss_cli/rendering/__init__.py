"""Results for people, in a terminal. Every text from outside is escaped before it is shown."""

from seqloss_cli.rendering.tables import TableOptions, TableWriter

__all__ = ["TableOptions", "TableWriter"]
