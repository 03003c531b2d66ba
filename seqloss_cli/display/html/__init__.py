"""Results as a web page in one file."""

from seqloss_cli.display.html.divergences import gather_divergences, page_of_divergences
from seqloss_cli.display.html.documents import page_bytes
from seqloss_cli.display.html.joined import gather_pair
from seqloss_cli.display.html.one_model import gather, page_of
from seqloss_cli.display.html.page import Page, PageOptions
from seqloss_cli.display.html.questioned import gather_rankings
from seqloss_cli.display.html.rankings import page_of_rankings
from seqloss_cli.display.html.selecting import MOST_SEQUENCES, MOST_TOKENS, Limits
from seqloss_cli.display.html.two_models import page_of_pair

__all__ = [
    "MOST_SEQUENCES",
    "MOST_TOKENS",
    "Limits",
    "Page",
    "PageOptions",
    "gather",
    "gather_divergences",
    "gather_pair",
    "gather_rankings",
    "page_bytes",
    "page_of",
    "page_of_divergences",
    "page_of_pair",
    "page_of_rankings",
]
