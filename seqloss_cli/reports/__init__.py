"""Results as a web page in one file."""

from seqloss_cli.reports.documents import page_bytes
from seqloss_cli.reports.one_model import gather, page_of
from seqloss_cli.reports.page import Page, PageOptions
from seqloss_cli.reports.selecting import MOST_SEQUENCES, MOST_TOKENS, Limits

__all__ = [
    "MOST_SEQUENCES",
    "MOST_TOKENS",
    "Limits",
    "Page",
    "PageOptions",
    "gather",
    "page_bytes",
    "page_of",
]
