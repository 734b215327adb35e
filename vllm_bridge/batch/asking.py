"""Asking: one request, or several joined in one, and what an error says of asking again."""

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from ..api.body import object_of, to_json
from ..client.cancellation import Cancellation
from ..client.options import Trace
from ..client.retry import never_sent
from ..errors import APIStatusError, APITimeoutError, BridgeError, ConfigError
from ..errors import RequestCancelledError, ResponseDecodeError
from ..client.failures import LACKING
from ..provider import BaseOpenAIProvider
from .join import joined, parted, sort_of
from .pace import queue_of
from .request import Request

__all__ = ["Answer", "Outcome", "ask", "grouped", "is_away", "is_final", "is_refusal", "queues"]

_OWN_FAULT = frozenset((400, 404, 413, 422))  # asked again it would fail again
_UNTOUCHED = frozenset((429, 503))  # a server that says so has not begun
_GATEWAYS = frozenset((502, 503, 504))
_QUEUE_SECONDS = 2.0  # that a server has to tell its queue


class Answer(NamedTuple):
    """A reply: its status, the id under which the server logged the request, its JSON, and the object of that."""

    status: int
    request_id: Optional[str]
    data: bytes
    payload: Dict[str, Any]


# What became of a request: its answer, or the error.
Outcome = Tuple[Request, Optional[Answer], Optional[BridgeError]]


def ask(provider: BaseOpenAIProvider, requests: Sequence[Request]) -> List[Outcome]:
    """Ask for one request, or several that can be joined; of those one that is refused fails alone."""
    try:
        if len(requests) == 1:
            return [(requests[0], _asked(provider, requests[0].operation, requests[0].body), None)]
        return _together(provider, requests)
    except (RequestCancelledError, ConfigError):
        raise
    except BridgeError as error:
        if len(requests) == 1 or not _own_fault(error):
            return [(request, None, error) for request in requests]
    half = len(requests) // 2
    return ask(provider, requests[:half]) + ask(provider, requests[half:])


def _asked(provider: BaseOpenAIProvider, operation: str, body: Dict[str, Any]) -> Answer:
    if operation == "rerank":
        trace = Trace()
        record = provider.with_options(trace=trace).rerank(**body)
        return Answer(trace.status or 200, trace.request_id, to_json(record), record)
    reply = provider.forward(operation, body)
    try:
        payload = object_of(reply.body, operation)
    except ResponseDecodeError as error:
        reply.tell(error)
        raise
    return Answer(reply.status, reply.request_id, reply.body, payload)


def _together(provider: BaseOpenAIProvider, requests: Sequence[Request]) -> List[Outcome]:
    answer = _asked(provider, requests[0].operation, joined(requests))
    return [
        (request, answer._replace(data=to_json(part), payload=part), None)
        for request, part in zip(requests, parted(answer.payload, requests))
    ]


def grouped(requests: Sequence[Request]) -> List[List[Request]]:
    """Return requests in groups that can be joined, in their order."""
    groups: List[List[Request]] = []
    before = None
    for request in requests:
        sort = sort_of(request)
        if groups and sort is not None and sort == before:
            groups[-1].append(request)
        else:
            groups.append([request])
        before = sort
    return groups


def queues(provider: BaseOpenAIProvider, cancel: Cancellation) -> Optional[Tuple[int, int]]:
    """Return how many requests run and how many wait at all servers that tell; ``None`` if none does."""
    options = provider.with_options(timeout=_QUEUE_SECONDS, deadline=_QUEUE_SECONDS, cancel=cancel)._options
    caller = provider._caller
    running = waiting = told = 0
    for key in {key.url: key for key in caller.fleet.keys}.values():
        try:
            found = queue_of(caller.get("/metrics", key, options).body)
        except BridgeError:
            continue
        if found is not None:
            running, waiting, told = running + found[0], waiting + found[1], told + 1
    return (running, waiting) if told else None


# ---------------------------------------------------------------- what an error says


def _own_fault(error: BridgeError) -> bool:
    return isinstance(error, APIStatusError) and error.status_code in _OWN_FAULT


def is_final(error: BridgeError, at_most_once: bool) -> bool:
    """Tell whether a request that failed so is not to be asked again."""
    if _own_fault(error):
        return True
    return at_most_once and not (never_sent(error) or error.status_code in _UNTOUCHED)


def is_refusal(error: BridgeError) -> bool:
    """Tell whether a server, or this machine, has more to do than it can."""
    return error.status_code in _UNTOUCHED or isinstance(error, APITimeoutError) or error.code == LACKING


def is_away(error: BridgeError) -> bool:
    """Tell whether no server has answered, though a proxy may have."""
    return error.status_code is None or error.status_code in _GATEWAYS
