"""Names of files elsewhere: `s3://bucket/key`, and how they are shown."""

from __future__ import annotations

import re
from os import PathLike, fspath

from seqloss_cli.core.escaping import shown_path

# Two letters at least: C:\ is a drive.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")
_SECRETS = re.compile(r"(?i)(signature|sig|token|key|credential|secret|password)[^&=]*=")


def url_of(name: str | PathLike[str]) -> str | None:
    """Return the URL that a name is; None for names of files here. A path has lost a slash."""
    text = fspath(name)
    found = _URL.match(text)
    return None if found is None else f"{found[1]}://{text[found.end() :]}"


def is_url(name: str) -> bool:
    """Return whether a name is a URL."""
    return "://" in name and _URL.match(name) is not None


def is_of_hub(name: str) -> bool:
    """Return whether a name is a URL of the hub, hf://."""
    return is_url(name) and name[:3].lower() == "hf:"


def shown_name(name: str) -> str:
    """Return a name as messages and rows have it: of a URL without what lets others in."""
    if not is_url(name):
        return shown_path(name)
    scheme, _, rest = name.partition("://")
    rest, mark, query = rest.partition("?")
    host, slash, path = rest.partition("/")
    host = host.rpartition("@")[2] if scheme.lower() in ("http", "https", "ftp", "sftp") else host
    query = "" if _SECRETS.search(query) else mark + query
    return shown_path(f"{scheme}://{host}{slash}{path}{query}")


def bare_name(name: str) -> str:
    """Return a name without the query of a URL: its end tells what is in the file."""
    return name.partition("?")[0] if is_url(name) else name
