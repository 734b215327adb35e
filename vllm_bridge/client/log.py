"""Requests and replies in the log ``vllm_bridge``: INFO what came of each, DEBUG what went out.

Keys are never logged, and texts only where ``vllm_bridge.content`` is set to DEBUG itself as well.
"""

import logging
import time
from typing import Optional

from ..config.redaction import credentials, masked
from .reply import Call, OpenReply

__all__ = ["CONTENT", "LOG", "answered", "failed", "sent", "to_standard_error"]

LOG = logging.getLogger("vllm_bridge")
CONTENT = logging.getLogger("vllm_bridge.content")
CONTENT.setLevel(logging.WARNING)  # so that it does not follow the other one down


def to_standard_error(wanted: str) -> None:
    """Write the log to standard error: ``info``, ``debug``, or ``content``, which is with texts."""
    handler = logging.StreamHandler()
    handler.set_name("VLLM_BRIDGE_LOG")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    LOG.addHandler(handler)
    name = wanted.strip().lower()
    if name not in ("info", "debug", "content"):
        LOG.warning("VLLM_BRIDGE_LOG: expected info, debug or content, got %.40r", wanted)
        return
    LOG.setLevel(logging.INFO if name == "info" else logging.DEBUG)
    if name == "content":
        CONTENT.setLevel(logging.DEBUG)


def sent(call: Call) -> None:
    """Note a request that goes out."""
    size = 0 if call.body is None else len(call.body)
    LOG.debug("%s: sent, %d bytes, timeout %s", _named(call), size, call.timeout)
    if CONTENT.isEnabledFor(logging.DEBUG) and call.body is not None:
        CONTENT.debug("%s: > %s", _named(call), _text(call, call.body) if isinstance(call.body, bytes) else "(a form)")


def answered(call: Call, reply: OpenReply) -> None:
    """Note the head of a reply; a gateway has a log of its own requests."""
    level = logging.DEBUG if call.direct else logging.INFO
    LOG.log(level, "%s: %d after %.3f s", _named(call, reply.request_id), reply.status, reply.elapsed)
    if CONTENT.isEnabledFor(logging.DEBUG):
        reply.listen(lambda block: CONTENT.debug("%s: < %s", _named(call), _text(call, block)))


def failed(call: Call, error: BaseException) -> None:
    """Note a request without a reply; what exactly was wrong is in the error, which may have to be masked."""
    level = logging.DEBUG if call.direct else logging.INFO
    LOG.log(level, "%s: %s after %.3f s", _named(call), type(error).__name__, time.monotonic() - call.started)


def _text(call: Call, block: bytes) -> str:
    return _masked(call, block.decode("utf-8", "replace").replace("\n", "\\n"))


def _named(call: Call, request_id: Optional[str] = None) -> str:
    name = "%s %s [%s]" % (call.method, call.url.partition("?")[0], request_id or call.request_id)
    return _masked(call, name)  # servers repeat keys, in ids too


def _masked(call: Call, text: str) -> str:
    return masked(text, credentials(call.headers) + call.secrets)
