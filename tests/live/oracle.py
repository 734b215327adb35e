"""What a server itself says, asked with http.client alone: what the library and the gateway are held to."""

import http.client
import json
import re
import time
import urllib.parse
from typing import Any, Dict, Iterator, List, Optional, Tuple

VOLATILE = {"id", "created", "created_at", "completed_at", "request_id", "call_id", "item_id"}
LONGEST = 300.0


class Target:
    """A server, or the gateway before it: where it is, what it serves, and its key."""

    def __init__(self, role: str, url: str, model: str, key: Optional[str] = None, scripted: bool = True,
                 state: Optional[str] = None) -> None:
        self.role = role
        self.url = url
        self.model = model
        self.key = key
        self.scripted = scripted
        self.state = state

    def connect(self, limit: float = LONGEST) -> http.client.HTTPConnection:
        parts = urllib.parse.urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=limit)

    def headers(self, given: Optional[Dict[str, str]] = None) -> Dict[str, str]:
        bearer = {"Authorization": "Bearer " + self.key} if self.key else {}
        return dict(bearer, **(given or {}))


class Raw:
    """One reply as it came."""

    def __init__(self, status: int, headers: Dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body.decode("utf-8"))

    @property
    def data(self) -> List[str]:
        """What follows ``data:`` in a body of events, read without the project's own reader."""
        lines = self.body.decode("utf-8").split("\n")
        return [line[5:].strip() for line in lines if line.startswith("data:")]

    @property
    def events(self) -> List[Any]:
        return [json.loads(text) for text in self.data if text != "[DONE]"]


def ask(target: Target, method: str, path: str, body: Any = None, headers: Optional[Dict[str, str]] = None) -> Raw:
    """Make one request on a connection of its own and read the whole reply."""
    connection = target.connect()
    given = target.headers(headers)
    content: Optional[bytes] = body if isinstance(body, bytes) else None
    if body is not None and content is None:
        content = json.dumps(body).encode("utf-8")
        given.setdefault("Content-Type", "application/json")
    try:
        connection.request(method, path, content, given)
        answer = connection.getresponse()
        return Raw(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def form(fields: Dict[str, str], name: str, content: bytes) -> Tuple[bytes, Dict[str, str]]:
    """Write a multipart form with one file; returns the body and its header."""
    mark = "live-suite-boundary"
    parts = ['--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (mark, field, value)
             for field, value in fields.items()]
    head = '--%s\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n' % (mark, name)
    body = ("".join(parts) + head + "Content-Type: audio/wav\r\n\r\n").encode("utf-8") + content
    return body + ("\r\n--%s--\r\n" % mark).encode("ascii"), {"Content-Type": "multipart/form-data; boundary=" + mark}


def metric(target: Target, name: str) -> float:
    """Read one metric, summed over its labels."""
    lines = ask(target, "GET", "/metrics").body.decode("utf-8").splitlines()
    rows = [line for line in lines if line.startswith((name + "{", name + " "))]
    assert rows, "the server has no metric %s" % name
    return sum(float(row.rsplit(" ", 1)[1]) for row in rows)


def running(target: Target) -> int:
    """Count the requests that vLLM is generating for."""
    return int(metric(target, "vllm:num_requests_running"))


def wait_for_running(target: Target, count: int, limit: float) -> float:
    """Wait until vLLM generates for so many requests; give the seconds it took."""
    began = time.monotonic()
    while running(target) != count:
        assert time.monotonic() - began < limit, "still %d requests running after %.1f s, not %d" % (
            running(target), limit, count)
        time.sleep(0.02)
    return time.monotonic() - began


def differences(ours: Any, raw: Any, path: str = "") -> Iterator[str]:
    """Name every place where a value of the raw reply is not in ours; what ours has beyond it is not named."""
    if isinstance(raw, dict) and isinstance(ours, dict):
        for key, value in raw.items():
            if key not in ours:
                yield "%s.%s is missing" % (path, key)
            elif key not in VOLATILE:
                yield from differences(ours[key], value, "%s.%s" % (path, key))
    elif isinstance(raw, list) and isinstance(ours, list) and len(raw) == len(ours):
        for place, (mine, theirs) in enumerate(zip(ours, raw)):
            yield from differences(mine, theirs, "%s[%d]" % (path, place))
    elif isinstance(raw, float) and isinstance(ours, (int, float)):
        # Two runs of one request may differ in the last digits: vLLM batches them differently.
        if abs(ours - raw) > 1e-3 * max(1.0, abs(raw)):
            yield "%s is %r, not %r" % (path, ours, raw)
    elif ours != raw:
        yield "%s is %r, not %r" % (path, ours, raw)


def plain(message: str) -> str:
    """Leave out how many fields a refused body had: the library adds stream_options or encoding_format."""
    return re.sub("dict of [0-9]+ items", "dict", message)


def additions(ours: Any, raw: Any) -> "set[str]":
    """Collect the keys that ours has and the raw reply has not, at whatever depth."""
    found = set()
    if isinstance(raw, dict) and isinstance(ours, dict):
        found |= set(ours) - set(raw)
        for key in set(ours) & set(raw):
            found |= additions(ours[key], raw[key])
    elif isinstance(raw, list) and isinstance(ours, list):
        for mine, theirs in zip(ours, raw):
            found |= additions(mine, theirs)
    return found


def fold_chat(chunks: List[Any]) -> Dict[int, Dict[str, Any]]:
    """Put the chunks of a chat together, for each choice: content, reasoning, calls, finish and stop reason."""
    choices: Dict[int, Dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            whole = choices.setdefault(choice["index"], {"content": "", "reasoning": "", "calls": {}, "finish": None,
                                                         "stop": None, "logprobs": 0})
            delta = choice["delta"]
            whole["content"] += delta.get("content") or ""
            whole["reasoning"] += delta.get("reasoning") or ""
            for call in delta.get("tool_calls") or []:
                made = whole["calls"].setdefault(call["index"], ["", ""])
                made[0] += call["function"].get("name") or ""
                made[1] += call["function"].get("arguments") or ""
            whole["finish"] = choice.get("finish_reason") or whole["finish"]
            whole["stop"] = choice.get("stop_reason") or whole["stop"]
            whole["logprobs"] += len((choice.get("logprobs") or {}).get("content") or [])
    return choices


def chat_choices(reply: Any) -> Dict[int, Dict[str, Any]]:
    """Give a complete chat reply in the form of `fold_chat`."""
    return {choice["index"]: {
        "content": choice["message"].get("content") or "",
        "reasoning": choice["message"].get("reasoning") or "",
        "calls": {place: [call["function"]["name"], call["function"]["arguments"]]
                  for place, call in enumerate(choice["message"].get("tool_calls") or [])},
        "finish": choice["finish_reason"],
        "stop": choice.get("stop_reason"),
        "logprobs": len((choice.get("logprobs") or {}).get("content") or []),
    } for choice in reply["choices"]}
