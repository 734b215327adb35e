"""A server in vLLM's shapes whose model follows a script: it thinks, calls tools, fails once, and talks at length.

What it does next follows from the conversation: how many turns with calls there were. It calls what the agent offers: a
tool that takes a path and a content writes the file, one that takes a command runs it; without such tools it edits in
text, as aider's models do. Every request is kept, for `sessions` to look at.
"""

import itertools
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Dict, Iterator, List, Optional, Tuple

MODEL = "coder"
FILE = "note.txt"
LINE = "written through the gateway"
LONG = " ".join("Line %d of a long answer." % number for number in range(1, 400))
LAST = "All done: the file says what it should."
BUSY = {"error": {"message": "The engine is currently busy.", "type": "ServiceUnavailableError", "param": None,
                  "code": 503}}

Call = Tuple[str, Dict[str, Any]]


class Turn:
    """What the model says next: a thought, words, calls."""

    def __init__(self, thought: str = "", text: str = "", calls: Tuple[Call, ...] = ()) -> None:
        self.thought = thought
        self.text = text
        self.calls = calls


def properties(tool: Dict[str, Any]) -> Dict[str, Any]:
    schema = tool.get("input_schema") or tool.get("function", {}).get("parameters") or {}
    return schema.get("properties") or {}


def name_of(tool: Dict[str, Any]) -> str:
    return str(tool.get("name") or tool.get("function", {}).get("name"))


def filled(tool: Dict[str, Any], values: Dict[str, Any]) -> Call:
    """Return a call of a tool, what else it requires filled in."""
    shape = properties(tool)
    schema = tool.get("input_schema") or tool.get("function", {}).get("parameters") or {}
    found = {name: value for name, value in values.items() if name in shape}
    for name in schema.get("required") or ():
        if name not in found:
            kind = shape.get(name, {}).get("type")
            found[name] = {"boolean": False, "number": 1, "integer": 1, "array": [], "object": {}}.get(kind, "x")
    return name_of(tool), found


def writing(tools: List[Dict[str, Any]], folder: str) -> Optional[Call]:
    """Return the call that writes the file."""
    for tool in tools:
        shape = properties(tool)
        path = next((name for name in ("file_path", "filePath", "path") if name in shape), None)
        if path and "content" in shape:
            return filled(tool, {path: "%s/%s" % (folder, FILE), "content": LINE + "\n"})
    return running(tools, "printf '%s\\n' > %s" % (LINE, FILE))


def running(tools: List[Dict[str, Any]], command: str) -> Optional[Call]:
    """Return the call that runs a command."""
    for tool in tools:
        shape = properties(tool)
        name = next((name for name in ("command", "cmd") if name in shape), None)
        if name and not {"content", "path"} & set(shape):
            listed = shape[name].get("type") == "array"
            return filled(tool, {name: ["bash", "-lc", command] if listed else command, "description": "Looks"})
    return None


def next_turn(messages: List[Dict[str, Any]], tools: List[Dict[str, Any]], text: str, folder: str) -> Turn:
    """Return what the script has the model say to a conversation."""
    made = sum(bool(message.get("tool_calls") or _uses(message)) for message in messages)
    write, run = writing(tools, folder), running(tools, "cat %s; pwd" % FILE)
    if write is None or run is None:
        edits = "file listing" in text and LINE not in text  # aider asks for whole files
        return Turn(text="%s\n```\n%s\n```\n" % (FILE, LINE) if edits else LAST)
    if made == 0:
        return Turn("I should write the file, and look where I am.", "I will write the file.",
                    (write, running(tools, "pwd") or run))
    if made == 1:
        return Turn("Now I look at it.", "", (run,))
    return Turn("It is there.", LONG + "\n\n" + LAST)


def _uses(message: Dict[str, Any]) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(
        isinstance(block, dict) and block.get("type") == "tool_use" for block in content)


class Upstream(ThreadingHTTPServer):
    """The server; `folder` is where the agent works, `requests` are what was asked of it: (path, headers, body)."""

    daemon_threads = True

    def __init__(self, folder: str, fail: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.fail = fail
        self.requests: List[Tuple[str, Dict[str, str], Any]] = []
        self.refused: List[str] = []
        self.lock = threading.Lock()
        self.url = "http://127.0.0.1:%d" % self.server_address[1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Upstream

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._json({"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "vllm",
                                                    "max_model_len": 200000}]})
        else:
            self._json({"detail": "Not Found"}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
        path = self.path.partition("?")[0]
        with self.server.lock:
            self.server.requests.append((path, dict(self.headers.items()), body))
            fails, self.server.fail = self.server.fail, False
        problem = refused(path, body)
        if problem:
            self.server.refused.append(problem)
            self._json({"error": {"message": problem, "type": "Bad Request", "param": None, "code": 400}}, 400)
        elif fails:
            self._json(BUSY, 503)
        elif path == "/v1/chat/completions":
            self._answer(body, path, _Chat())
        elif path == "/v1/messages":
            self._answer(body, path, _Messages())
        elif path == "/v1/messages/count_tokens":
            self._json({"input_tokens": len(json.dumps(body)) // 4})
        else:
            self._json({"detail": "Not Found"}, 404)

    def _answer(self, body: Dict[str, Any], path: str, shape: Any) -> None:
        turn = next_turn(body["messages"], body.get("tools") or [], json.dumps(body), self.server.folder)
        if not body.get("stream"):
            return self._json(shape.whole(turn))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in shape.events(turn, body):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
        self.wfile.write(b"0\r\n\r\n")
        return None

    def _json(self, payload: Any, status: int = 200) -> None:
        data = json.dumps(payload).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


# What vLLM 0.32 refuses of what agents send (tests/data/vllm-0.32.0: messages_server_tool, messages_document).
_BLOCKS = ("text", "image", "tool_use", "tool_result", "tool_reference", "thinking", "redacted_thinking")


def refused(path: str, body: Dict[str, Any]) -> str:
    """Say why vLLM would refuse a request, ``""`` if it would not."""
    tools = body.get("tools") or []
    if path.startswith("/v1/messages"):
        for tool in tools:
            if "input_schema" not in tool:
                return "body.tools: Field required: input_schema of %s" % json.dumps(tool)
        for message in body.get("messages") or []:
            content = message.get("content")
            for block in content if isinstance(content, list) else ():
                if block.get("type") not in _BLOCKS:
                    return "body.messages: no block of type %r" % block.get("type")
    elif path == "/v1/chat/completions":
        for tool in tools:
            if tool.get("type") != "function":
                return "body.tools: no tool of type %r" % tool.get("type")
        for message in body.get("messages") or []:
            if message.get("role") not in ("system", "developer", "user", "assistant", "tool"):
                return "body.messages: no role %r" % message.get("role")
    return ""


_NUMBERS = itertools.count(1)


def new_id(kind: str) -> str:
    """Return an id that no other answer and no other call has: agents fold those of the same one together."""
    return "%s-%016x" % (kind, next(_NUMBERS))


def pieces(text: str) -> List[str]:
    return re.findall(r"\s*\S+", text)


class _Chat:
    """Chat completions, as vLLM with a reasoning parser writes them."""

    def __init__(self) -> None:
        self.id = new_id("chatcmpl")

    def whole(self, turn: Turn) -> Dict[str, Any]:
        calls = [{"id": new_id("chatcmpl-tool"), "type": "function", "function": {
            "name": name, "arguments": json.dumps(arguments)}} for name, arguments in turn.calls]
        message = {"role": "assistant", "content": turn.text or None, "reasoning": turn.thought or None}
        if calls:
            message["tool_calls"] = calls
        return {"id": self.id, "object": "chat.completion", "created": 1, "model": MODEL, "choices": [
            {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}}

    def events(self, turn: Turn, body: Dict[str, Any]) -> Iterator[bytes]:
        deltas: List[Dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"reasoning": piece} for piece in pieces(turn.thought)]
        deltas += [{"content": piece} for piece in pieces(turn.text)]
        for index, (name, arguments) in enumerate(turn.calls):
            deltas.append({"tool_calls": [{"index": index, "id": new_id("chatcmpl-tool"),
                                           "type": "function", "function": {"name": name}}]})
            text = json.dumps(arguments)
            for at in range(0, len(text), 7):
                deltas.append({"tool_calls": [{"index": index, "function": {"arguments": text[at:at + 7]}}]})
        for delta in deltas:
            yield self._event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])
        yield self._event([{"index": 0, "delta": {}, "finish_reason": "tool_calls" if turn.calls else "stop"}])
        if (body.get("stream_options") or {}).get("include_usage"):
            yield self._event([], usage={"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15})
        yield b"data: [DONE]\n\n"

    def _event(self, choices: List[Dict[str, Any]], **more: Any) -> bytes:
        chunk = {"id": self.id, "object": "chat.completion.chunk", "created": 1, "model": MODEL,
                 "choices": choices, **more}
        return b"data: %s\n\n" % json.dumps(chunk, separators=(",", ":")).encode()


class _Messages:
    """Anthropic's messages, as vLLM writes them."""

    def __init__(self) -> None:
        self.id = new_id("chatcmpl")

    def whole(self, turn: Turn) -> Dict[str, Any]:
        content = [{**start, **({"input": whole} if start["type"] == "tool_use" else {start["type"]: whole})}
                   for start, _, whole in self._blocks(turn)]
        return {"id": self.id, "type": "message", "role": "assistant", "content": content, "model": MODEL,
                "stop_reason": "tool_use" if turn.calls else "end_turn",
                "usage": {"input_tokens": 10, "output_tokens": 5}}

    def _blocks(self, turn: Turn) -> Iterator[Tuple[Dict[str, Any], List[Dict[str, Any]], Any]]:
        for kind, text in (("thinking", turn.thought), ("text", turn.text)):
            if text:
                yield {"type": kind, kind: ""}, [{"type": kind + "_delta", kind: piece} for piece in pieces(text)], text
        for name, arguments in turn.calls:
            text = json.dumps(arguments)
            start = {"type": "tool_use", "id": new_id("chatcmpl-tool"), "name": name, "input": {}}
            yield start, [{"type": "input_json_delta", "partial_json": text[at:at + 7]}
                          for at in range(0, len(text), 7)], arguments

    def events(self, turn: Turn, body: Dict[str, Any]) -> Iterator[bytes]:
        start = {"id": self.id, "type": "message", "role": "assistant", "content": [], "model": MODEL,
                 "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 10, "output_tokens": 0}}
        yield self._event({"type": "message_start", "message": start})
        for index, (block, deltas, _) in enumerate(self._blocks(turn)):
            yield self._event({"type": "content_block_start", "content_block": block, "index": index})
            for delta in deltas:
                yield self._event({"type": "content_block_delta", "delta": delta, "index": index})
            yield self._event({"type": "content_block_stop", "index": index})
        yield self._event({"type": "message_delta", "delta": {
            "stop_reason": "tool_use" if turn.calls else "end_turn", "stop_sequence": None},
            "usage": {"input_tokens": 10, "output_tokens": 5}})
        yield self._event({"type": "message_stop"})

    def _event(self, event: Dict[str, Any]) -> bytes:
        return b"event: %s\ndata: %s\n\n" % (event["type"].encode(), json.dumps(event, separators=(",", ":")).encode())
