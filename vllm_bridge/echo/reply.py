"""What the stand-in sends back, and the steps in which it sends it: bytes, silences, a cut."""

import json
from enum import Enum
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Union

from .directives import Plan
from .refusal import Refusal, as_anthropic, on_demand

DONE = b"data: [DONE]\n\n"


class Reply:
    """One answer: ``payload`` as the body (None for an empty one), or ``events`` as a stream of JSON objects.

    ``tokens`` is how many were generated: what a delay per token is multiplied with when nothing is streamed.
    A ``payload`` beside ``events`` is the error at their end. The events of a ``typed`` stream are named after their
    types and end without ``[DONE]``.
    """

    def __init__(self, payload: Any = None, status: int = 200, headers: Optional[Dict[str, str]] = None,
                 events: Optional[List[Any]] = None, tokens: int = 0, typed: bool = False) -> None:
        self.payload = payload
        self.status = status
        self.headers = dict(headers or {})
        self.events = events
        self.tokens = tokens
        self.typed = typed
        self.plan = Plan()

    @property
    def body(self) -> bytes:
        """The body of an answer that is not streamed; a ``str`` payload is sent as it stands."""
        if self.payload is None:
            return b""
        if isinstance(self.payload, bytes):
            return self.payload
        return self.payload.encode("utf-8") if isinstance(self.payload, str) else compact(self.payload)


class World(NamedTuple):
    """What an answer depends on besides the request."""

    models: Sequence[str]
    any_model: bool
    embedding_size: int
    max_model_len: int
    created: int
    request_id: str
    running: int


class Mark(Enum):
    """Steps that send nothing: the socket is closed in mid-answer; the generation ends, one last write follows."""

    CUT = 1
    GENERATED = 2


Step = Union[bytes, float, Mark]


def headed(identity: Dict[str, Any], kind: str, **fields: Any) -> Dict[str, Any]:
    """Return the object that a reply or a chunk is, in vLLM's key order; ``identity`` holds id, created and model."""
    return {"id": identity["id"], "object": kind, "created": identity["created"], "model": identity["model"], **fields}


def compact(value: Any) -> bytes:
    """Print JSON as vLLM's bodies and chunks are printed: no spaces, raw UTF-8."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def refused(refusal: Refusal, plan: Plan, streaming: bool, typed: bool = False) -> Reply:
    """Turn a refusal into the answer that carries it."""
    if refusal.late and streaming:
        return Reply(refusal.payload, events=[], typed=typed)
    payload = as_anthropic(refusal.payload) if typed else refusal.payload
    reply = Reply(payload, refusal.status, refusal.headers)
    if plan.retry_after is not None:
        reply.headers["retry-after"] = str(plan.retry_after)
    return reply


def check(plan: Plan) -> None:
    """Raise the error that ``plan`` asks for before anything is generated."""
    if plan.error is not None:
        raise on_demand(plan.error)
    if plan.error_in_200 is not None:
        raise Refusal(200, on_demand(plan.error_in_200).payload, late=True)


def steps(reply: Reply, delay: float, head: bytes, chunk: Callable[[bytes], bytes]) -> Iterator[Step]:
    """Say what is sent, piece by piece, from ``head`` on; numbers are seconds of silence.

    ``delay`` is the pause before each event of a stream, whose parts are framed by ``chunk``; an answer in one piece
    waits for all its tokens.
    """
    plan = reply.plan
    delay = plan.slow if plan.slow is not None else delay
    yield plan.stall
    if plan.die:
        yield Mark.CUT
    elif reply.events is None:
        yield delay * reply.tokens + (plan.stall_after[1] if plan.stall_after else 0.0)
        yield Mark.GENERATED
        broken = plan.die_after is not None or plan.cut_after is not None
        yield head + (reply.body[:len(reply.body) // 2] if broken else reply.body)
        if broken:
            yield Mark.CUT
    else:
        yield head
        yield from _streamed(reply, reply.events, delay, chunk)


def _streamed(reply: Reply, events: List[Any], delay: float, chunk: Callable[[bytes], bytes]) -> Iterator[Step]:
    plan, last = reply.plan, len(events)
    error = reply.payload
    if plan.error_after is not None and plan.error_after[0] <= last:
        last, error = plan.error_after[0], on_demand(plan.error_after[1]).payload
    cut = min([at for at in (plan.die_after, plan.cut_after) if at is not None], default=len(events) + 1)
    for index in range(min(cut, last) + 1):
        if plan.stall_after is not None and plan.stall_after[0] == index:
            yield plan.stall_after[1]
        if index < min(cut, last):
            yield delay
            if plan.comments:
                yield chunk(b": keep-alive\n\n")
            yield chunk(_named(events[index], reply.typed) + b"data: " + compact(events[index]) + b"\n\n")
    if plan.die_after is not None and plan.die_after <= len(events):
        yield Mark.CUT
    elif cut > len(events):
        if error is not None:
            # vLLM prints these with spaces and ASCII escapes (s_err_logit_bias_bad).
            error = as_anthropic(error) if reply.typed else error
            yield chunk(_named(error, reply.typed) + b"data: " + json.dumps(error).encode("ascii") + b"\n\n")
        yield Mark.GENERATED
        if not reply.typed:
            yield chunk(DONE)
    yield Mark.GENERATED


def _named(event: Any, typed: bool) -> bytes:
    return b"event: %s\n" % event["type"].encode("ascii") if typed else b""
