"""The bodies of clients' requests, as far as they are looked at before they go on."""

from typing import Any, Dict, Optional
from urllib.parse import parse_qsl

from ..api.body import merged, scan, stands_once
from ..server.request import Request
from .errors import not_served
from .operations import Operation

__all__ = ["check_coding", "of_query", "unread", "unwrapped"]

# Members of a body that is too long to be parsed and goes on as it came: those that are needed to send it,
_NEEDED = frozenset(("model", "stream", "stream_options", "n", "prompt", "input"))
# and those that would have to be changed on the way.
_LOOKED_AT = _NEEDED | frozenset((
    "fallbacks extra_params messages prompt_embeds guided_json guided_regex guided_choice guided_grammar"
).split())


def unread(operation: Operation, data: bytes) -> Optional[Dict[str, Any]]:
    """Return what has to be known of a body that is too long to be parsed, if it only passes and that is sure."""
    if not operation.passes or not stands_once(data):
        return None
    found = scan(data, _LOOKED_AT)
    if found is None or None in found.values() or not _NEEDED.issuperset(found):
        return None
    if found.get("stream") and found.get("prompt") is ...:
        return None  # how many choices will end cannot be counted
    found["..."] = ...  # all the rest: this body cannot be printed
    return found


def unwrapped(body: Dict[str, Any]) -> Dict[str, Any]:
    """Merge what Bifrost's clients wrap in ``extra_params`` into a body, before anything in it is looked at."""
    own = {"extra_body": body.pop("extra_body")} if "extra_body" in body else {}
    return {**own, **merged(body)}


def check_coding(request: Request) -> None:
    """Raise `APIStatusError` (415) for a body that is compressed."""
    coding = request.fields["content-encoding"]
    if coding and coding.lower() != "identity":
        raise not_served(415, "unsupported_encoding", "the request body is compressed (%.40s); send it plain" % coding)


def of_query(query: str) -> Dict[str, Any]:
    """Return what a query says, as a body."""
    return dict(parse_qsl(query))
