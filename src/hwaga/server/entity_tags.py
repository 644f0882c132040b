"""Entity tags (RFC 9110, 8.8.3): what a client that has a picture or a file already names it by."""

from __future__ import annotations

from typing import Any

ETAG: dict[str, Any] = {"ETag": {"description": "For If-None-Match.", "required": True, "schema": {"type": "string"}}}
"""What the OpenAPI document says of the header."""


def is_named(tag: str, if_none_match: str | None) -> bool:
    """Whether a request's If-None-Match (13.1.2 there) names what there is, so that 304 is the answer.

    Args:
        tag: of what there is, in its quotes.
        if_none_match: a list of tags, strong or weak; or ``*``, which is whatever there is.
    """
    return if_none_match is not None and (if_none_match.strip() == "*" or tag in if_none_match)
