"""A fake vLLM with ready-made bytes on one thread, so that it costs far less than what is measured in front of it.

A request says in its text what it wants streamed: ``bench:burst:N`` sends N events in one write, ``bench:each:N`` a
write per event, ``bench:paced:N:MS`` an event every MS milliseconds, each stamped with the monotonic time in
microseconds (``@`` and 16 digits) at which it was written.
"""

import array
import base64
import collections
import heapq
import json
import random
import re
import select
import socket
import sys
import time
from typing import Any, Deque, Dict, List, Tuple

ORDER = re.compile(rb"bench:(burst|each|paced):(\d+)(?::(\d+))?")
LENGTH = re.compile(rb"content-length:[ \t]*(\d+)", re.IGNORECASE)
CHUNKED = re.compile(rb"transfer-encoding:[ \t]*chunked", re.IGNORECASE)
HEAD = (
    "HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 17:19:26 GMT\r\nserver: uvicorn\r\n%scontent-type: %s\r\n"
    "vary: Origin\r\n%s\r\n"
)
STAMP = "@0000000000000000"
STREAM_HEAD = (HEAD % ("", "text/event-stream; charset=utf-8", "transfer-encoding: chunked\r\n")).encode()
END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
WORDS = " the quick brown fox jumps over a lazy dog and then it rests , again".split(" ")


def whole(payload: Any) -> bytes:
    """Return a complete JSON reply."""
    body = json.dumps(payload, separators=(",", ":")).encode()
    return (HEAD % ("content-length: %d\r\n" % len(body), "application/json", "")).encode() + body


def chat_reply() -> bytes:
    message = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
    message = {"role": "assistant", "content": "The quick brown fox jumps over the lazy dog.", **message}
    return whole({
        "id": "chatcmpl-b70576cb085e6be3", "object": "chat.completion", "created": 1795367966, "model": "bench",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None,
                     "token_ids": None, "routed_experts": None}],
        "service_tier": None, "system_fingerprint": "vllm-0.32.0-e700fc01",
        "usage": {"prompt_tokens": 11, "total_tokens": 24, "completion_tokens": 13, "prompt_tokens_details": None,
                  "completion_tokens_details": None},
        "prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None, "kv_transfer_params": None,
        "ec_transfer_params": None, "metrics": None,
    })


def event(delta: Dict[str, Any], finish: Any = None, **more: Any) -> bytes:
    """Return one event as uvicorn frames it: an HTTP chunk of its own."""
    payload = {
        "id": "chatcmpl-b03669591dc3f4f2", "object": "chat.completion.chunk", "created": 1795367977, "model": "bench",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, "token_ids": None}], **more,
    }
    if delta.get("role"):
        del payload["choices"][0]["token_ids"]  # type: ignore[attr-defined]
    return chunk(payload)


def chunk(payload: Any) -> bytes:
    data = b"data: %b\n\n" % json.dumps(payload, separators=(",", ":")).encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


def events(count: int, usage: bool, stamped: bool = False) -> List[bytes]:
    """Return `count` events of text between the role's and the finish, as HTTP chunks."""
    role = event({"role": "assistant", "content": ""}, prompt_token_ids=None, prompt_text=None)
    texts = [event({"content": STAMP if stamped else " " + WORDS[n % len(WORDS)]}) for n in range(count)]
    last = [event({}, "stop", system_fingerprint="vllm-0.32.0-e700fc01")]
    if usage:
        last.append(chunk({
            "id": "chatcmpl-b03669591dc3f4f2", "object": "chat.completion.chunk", "created": 1795367977,
            "model": "bench", "choices": [],
            "usage": {"prompt_tokens": 11, "total_tokens": 11 + count, "completion_tokens": count},
        }))
    return [role] + texts + last + [END]


def embeddings(encoded: bool) -> bytes:
    """Return 32 vectors of 1,024 floats, each a float32 as vLLM prints it."""
    numbers = random.Random(7)
    rows = [array.array("f", [numbers.gauss(0, 0.03) for _ in range(1024)]) for _ in range(32)]
    if encoded and sys.byteorder == "big":
        for row in rows:
            row.byteswap()
    return whole({
        "id": "embd-a9ca1b567f648956", "object": "list", "created": 1795369838, "model": "bench",
        "data": [{"index": index, "object": "embedding",
                  "embedding": base64.b64encode(row.tobytes()).decode() if encoded else row.tolist()}
                 for index, row in enumerate(rows)],
        "usage": {"prompt_tokens": 160, "total_tokens": 160, "completion_tokens": 0, "prompt_tokens_details": None,
                  "completion_tokens_details": None},
    })


class Peer:
    """A connection: what has arrived, and what is still to be written to it, in pieces."""

    __slots__ = ("sock", "fd", "have", "out", "waiting")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.have = b""
        self.out: Deque[bytes] = collections.deque()
        self.waiting = False


class Upstream:
    """The server; `run` never returns."""

    def __init__(self, port: int = 0) -> None:
        self.listener = socket.create_server(("127.0.0.1", port), backlog=2048)
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.epoll = select.epoll()
        self.epoll.register(self.listener.fileno(), select.EPOLLIN)
        self.peers: Dict[int, Peer] = {}
        self.due: List[Tuple[float, int, Peer, List[bytes], int, float]] = []
        self.turn = 0
        self.chat = chat_reply()
        self.floats = embeddings(False)
        self.base64 = embeddings(True)
        self.models = whole({"object": "list", "data": [{"id": "bench", "object": "model", "created": 1,
                                                         "owned_by": "vllm", "root": "bench", "max_model_len": 4096}]})
        self.streams: Dict[Tuple[int, bool, bool], List[bytes]] = {}
        self.bursts: Dict[Tuple[int, bool], bytes] = {}

    def run(self) -> None:
        """Serve for ever."""
        while True:
            wait = -1.0 if not self.due else max(0.0, self.due[0][0] - time.monotonic())
            for fd, mask in self.epoll.poll(wait):
                if fd == self.listener.fileno():
                    self.accept()
                    continue
                peer = self.peers.get(fd)
                if peer is not None:
                    if mask & select.EPOLLOUT:
                        self.flush(peer)
                    if mask & ~select.EPOLLOUT:
                        self.receive(peer)
            while self.due and self.due[0][0] <= time.monotonic():
                self.step(*heapq.heappop(self.due))

    def accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer = self.peers[sock.fileno()] = Peer(sock)
            self.epoll.register(peer.fd, select.EPOLLIN)

    def drop(self, peer: Peer) -> None:
        if self.peers.pop(peer.fd, None) is not None:
            self.epoll.unregister(peer.fd)
            peer.sock.close()

    def receive(self, peer: Peer) -> None:
        try:
            data = peer.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop(peer)
            return
        data = peer.have + data if peer.have else data
        while data:
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                break
            head = data[:end]
            length = LENGTH.search(head)
            if length is not None:
                stop = end + int(length.group(1))
            elif CHUNKED.search(head) is not None:
                stop = data.find(b"0\r\n\r\n", end) + 5
                if stop < 5:
                    break
            else:
                stop = end
            if len(data) < stop:
                break
            self.answer(peer, head, data[end:stop])
            data = data[stop:]
        peer.have = data

    def answer(self, peer: Peer, head: bytes, body: bytes) -> None:
        order = ORDER.search(body)
        if b"/embeddings " in head[:80]:
            self.send(peer, self.base64 if b'"base64"' in body else self.floats)
        elif order is None:
            self.send(peer, self.models if head.startswith(b"GET") else self.chat)
        else:
            kind, count = order.group(1), int(order.group(2))
            usage = b'"include_usage"' in body
            if kind == b"burst":
                key = (count, usage)
                if key not in self.bursts:
                    self.bursts[key] = STREAM_HEAD + b"".join(events(count, usage))
                self.send(peer, self.bursts[key])
                return
            parts = self.streams.get((count, usage, kind == b"paced"))
            if parts is None:
                parts = self.streams[count, usage, kind == b"paced"] = events(count, usage, kind == b"paced")
            self.send(peer, STREAM_HEAD + parts[0])
            if kind == b"each":
                for part in parts[1:]:
                    self.send(peer, part)
            else:
                gap = int(order.group(3)) / 1000.0
                self.later(time.monotonic() + gap, peer, parts, 1, gap)

    def later(self, at: float, peer: Peer, parts: List[bytes], index: int, gap: float) -> None:
        self.turn += 1
        heapq.heappush(self.due, (at, self.turn, peer, parts, index, gap))

    def step(self, at: float, turn: int, peer: Peer, parts: List[bytes], index: int, gap: float) -> None:
        """Write the next event of a paced stream; the finish, usage and end mark go with the last one."""
        if peer.fd not in self.peers or self.peers[peer.fd] is not peer:
            return
        part = parts[index]
        mark = part.find(b"@")
        if mark < 0:
            self.send(peer, b"".join(parts[index:]))
            return
        self.send(peer, b"%b@%016d%b" % (part[:mark], time.monotonic_ns() // 1000, part[mark + 17:]))
        self.later(at + gap, peer, parts, index + 1, gap)

    def send(self, peer: Peer, data: bytes) -> None:
        if peer.out:
            peer.out.append(data)
            return
        try:
            sent = peer.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.drop(peer)
            return
        if sent < len(data):
            peer.out.append(data[sent:])
            if not peer.waiting:
                peer.waiting = True
                self.epoll.modify(peer.fd, select.EPOLLIN | select.EPOLLOUT)

    def flush(self, peer: Peer) -> None:
        pieces, peer.out = peer.out, collections.deque()
        peer.waiting = False
        self.epoll.modify(peer.fd, select.EPOLLIN)
        for piece in pieces:
            self.send(peer, piece)


if __name__ == "__main__":
    upstream = Upstream(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    print(upstream.port, flush=True)
    try:
        upstream.run()
    except KeyboardInterrupt:
        pass
