"""What the stand-in sends back, and the steps in which it sends it: bytes, silences, a cut."""

import json
from typing import Any, Dict, Iterator, List, Optional, Union

from .directives import Plan
from .refusal import Refusal, on_demand

DONE = b"data: [DONE]\n\n"


class Reply:
    """One answer: ``payload`` as the body (None for an empty one), or ``events`` as a stream of JSON objects.

    ``tokens`` is how many were generated: what a delay per token is multiplied with when nothing is streamed.
    """

    def __init__(self, payload: Any = None, status: int = 200, headers: Optional[Dict[str, str]] = None,
                 events: Optional[List[Any]] = None, tokens: int = 0) -> None:
        self.payload = payload
        self.status = status
        self.headers = dict(headers or {})
        self.events = events
        self.tokens = tokens
        self.plain = False

    @property
    def body(self) -> bytes:
        """The body of an answer that is not streamed; a ``str`` payload is sent as it stands."""
        if self.payload is None:
            return b""
        if isinstance(self.payload, str):
            return self.payload.encode("utf-8")
        return compact(self.payload)


class Head:
    """The step that sends the status line and the headers."""


class Cut:
    """The step that closes the socket in the middle of the answer."""


Step = Union[bytes, float, Head, Cut]


def compact(value: Any) -> bytes:
    """Print JSON as vLLM's bodies and chunks are printed: no spaces, raw UTF-8."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def frame(event: Any) -> bytes:
    """Print one event of a stream."""
    return b"data: " + compact(event) + b"\n\n"


def error_frame(payload: Any) -> bytes:
    """Print an error inside a stream: vLLM prints these with spaces and ASCII escapes (s_err_logit_bias_bad)."""
    return b"data: " + json.dumps(payload).encode("ascii") + b"\n\n"


def refused(refusal: Refusal, plan: Plan, streaming: bool) -> Reply:
    """Turn a refusal into the answer that carries it."""
    if refusal.late and streaming:
        reply = Reply(events=[])
        reply.payload = refusal.payload
        return reply
    reply = Reply(refusal.payload, refusal.status, refusal.headers)
    if plan.retry_after is not None:
        reply.headers["retry-after"] = str(plan.retry_after)
    return reply


def check(plan: Plan) -> None:
    """Raise the error that ``plan`` asks for before anything is generated."""
    if plan.error is not None:
        raise on_demand(plan.error)
    if plan.error_in_200 is not None:
        asked = on_demand(plan.error_in_200)
        raise Refusal(200, asked.payload, late=True)


def steps(reply: Reply, plan: Plan, delay: float) -> Iterator[Step]:
    """Say what is sent, piece by piece; numbers are seconds of silence.

    ``delay`` is the pause before each event of a stream; an answer in one piece waits for all its tokens.
    A stream that is to end in order ends with a step of its own for its end.
    """
    delay = plan.slow if plan.slow is not None else delay
    if plan.stall:
        yield plan.stall
    if plan.die:
        yield Cut()
    elif reply.events is None:
        for step in _in_one_piece(reply, plan, delay):
            yield step
    else:
        for step in _streamed(reply, reply.events, plan, delay):
            yield step


def _in_one_piece(reply: Reply, plan: Plan, delay: float) -> Iterator[Step]:
    yield delay * reply.tokens + (plan.stall_after[1] if plan.stall_after else 0.0)
    yield Head()
    if plan.die_after is not None or plan.cut_after is not None:
        yield reply.body[:len(reply.body) // 2]
        yield Cut()
    else:
        yield reply.body


def _streamed(reply: Reply, events: List[Any], plan: Plan, delay: float) -> Iterator[Step]:
    yield Head()
    for index, event in enumerate(events):
        for step in _before(index, plan):
            yield step
        if _ends(index, plan):
            break
        yield delay
        if plan.comments:
            yield b": keep-alive\n\n"
        yield frame(event)
    else:
        for step in _before(len(events), plan):
            yield step
    for step in _end(reply, len(events), plan):
        yield step


def _before(index: int, plan: Plan) -> Iterator[Step]:
    if plan.stall_after is not None and plan.stall_after[0] == index:
        yield plan.stall_after[1]


def _ends(index: int, plan: Plan) -> bool:
    asked = (plan.die_after, plan.cut_after, plan.error_after[0] if plan.error_after else None)
    return any(at is not None and at <= index for at in asked)


def _end(reply: Reply, length: int, plan: Plan) -> Iterator[Step]:
    if plan.die_after is not None and plan.die_after <= length:
        yield Cut()
    elif plan.cut_after is not None and plan.cut_after <= length:
        pass
    elif plan.error_after is not None and plan.error_after[0] <= length:
        yield error_frame(on_demand(plan.error_after[1]).payload)
        yield DONE
    elif reply.payload is not None:
        yield error_frame(reply.payload)
        yield DONE
    else:
        yield DONE
