"""Measure one client in this process: ``clients.py NAME BASE_URL SECONDS`` prints one JSON line.

Each client is a function from the server's address to what it can do: ``chat`` (a small call), ``stream`` (the texts of
a stream), ``embed`` (a component of the last of 32 vectors). Run with the interpreter in which the client is
installed; nothing here imports the rest of the benchmark.
"""

import http.client
import json
import resource
import socket
import statistics
import sys
import time
from typing import Any, Callable, Dict, Iterator, List, Optional
from urllib.parse import urlsplit

EVENTS = 2000  # of a stream: the call itself is one event in a thousand of its cost
INPUTS = ["some text to embed number %d" % index for index in range(32)]
Doings = Dict[str, Callable[..., Any]]


def body(order: str = "", **more: Any) -> Dict[str, Any]:
    """Return a small chat request; `order` tells the fake server what to stream."""
    system = {"role": "system", "content": "You are a helpful assistant."}
    user = {"role": "user", "content": "Write one sentence about the fox. " + order}
    return {"model": "bench", "messages": [system, user], "max_tokens": 256, "temperature": 0.7, **more}


def streaming(order: str) -> Dict[str, Any]:
    return body(order, stream=True, stream_options={"include_usage": True})


def text_of(payload: Dict[str, Any]) -> Optional[str]:
    choices = payload["choices"]
    return choices[0]["delta"].get("content") if choices else None


def ours(base: str, **network: Any) -> Doings:
    """The library as its README shows it."""
    from vllm_bridge import NetworkConfig, ProviderConfig, VLLMProvider

    vllm = VLLMProvider(config=ProviderConfig(NetworkConfig(base, **network)))

    def chat() -> Any:
        return vllm.chat_completion(**body()).choices[0].message.content

    def stream(order: str) -> Iterator[Any]:
        with vllm.chat_completion_stream(**body(order)) as chunks:
            for chunk in chunks:
                yield chunk.text

    def embed() -> Any:
        return vllm.embedding(model="bench", input=INPUTS).data[-1].embedding[-1]

    def responses(order: str) -> Iterator[Any]:
        with vllm.responses_stream(model="bench", input=order) as converted:
            for event in converted:
                yield event.type

    return {"chat": chat, "stream": stream, "embed": embed, "responses": responses, "close": vllm.close}


def requests_session(base: str) -> Doings:
    """``session.post(...).json()``, and ``iter_lines`` with blocks of 64 KiB, its quickest way that loses nothing."""
    import requests

    session = requests.Session()
    url = base + "/v1/chat/completions"

    def chat() -> Any:
        return session.post(url, json=body()).json()["choices"][0]["message"]["content"]

    def stream(order: str) -> Iterator[Any]:
        with session.post(url, json=streaming(order), stream=True) as reply:
            for line in reply.iter_lines(chunk_size=65536):
                if line.startswith(b"data: ") and line != b"data: [DONE]":
                    yield text_of(json.loads(line[6:]))

    def embed() -> Any:
        reply = session.post(base + "/v1/embeddings", json={"model": "bench", "input": INPUTS})
        return reply.json()["data"][-1]["embedding"][-1]

    return {"chat": chat, "stream": stream, "embed": embed, "close": session.close}


def http_client(base: str) -> Doings:
    """A bare ``http.client`` reader: ``read1``, split at blank lines, ``json.loads``."""
    connection = http.client.HTTPConnection(urlsplit(base).netloc)

    def post(path: str, wire: Dict[str, Any]) -> http.client.HTTPResponse:
        data = json.dumps(wire, separators=(",", ":")).encode()
        connection.request("POST", path, data, {"Content-Type": "application/json"})
        return connection.getresponse()

    def chat() -> Any:
        return json.loads(post("/v1/chat/completions", body()).read())["choices"][0]["message"]["content"]

    def stream(order: str) -> Iterator[Any]:
        reply = post("/v1/chat/completions", streaming(order))
        yield from texts(iter(lambda: reply.read1(65536), b""))

    def embed() -> Any:
        wire = {"model": "bench", "input": INPUTS}
        return json.loads(post("/v1/embeddings", wire).read())["data"][-1]["embedding"][-1]

    return {"chat": chat, "stream": stream, "embed": embed, "close": connection.close}


def floor(base: str) -> Doings:
    """The least that reading a stream can cost: a socket, chunks taken apart, ``json.loads`` of each event."""
    where = urlsplit(base)
    sock = socket.create_connection((where.hostname or "", where.port or 80))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post(path: str, wire: Dict[str, Any]) -> bytes:
        data = json.dumps(wire, separators=(",", ":")).encode()
        head = "POST %s HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        sock.sendall((head % (path, len(data))).encode() + data)
        received = sock.recv(65536)
        while b"\r\n\r\n" not in received:
            received += sock.recv(65536)
        return received

    def whole(path: str, wire: Dict[str, Any]) -> Any:
        received = post(path, wire)
        start = received.index(b"\r\n\r\n") + 4
        length = int(received[:start].lower().split(b"content-length:", 1)[1].split(b"\r", 1)[0])
        blocks = [received[start:]]
        left = length - len(blocks[0])
        while left:
            blocks.append(sock.recv(262144))
            left -= len(blocks[-1])
        return json.loads(b"".join(blocks))

    def chat() -> Any:
        return whole("/v1/chat/completions", body())["choices"][0]["message"]["content"]

    def stream(order: str) -> Iterator[Any]:
        received = post("/v1/chat/completions", streaming(order))
        yield from texts(dechunked(received[received.index(b"\r\n\r\n") + 4:], sock.recv))

    def embed() -> Any:
        return whole("/v1/embeddings", {"model": "bench", "input": INPUTS})["data"][-1]["embedding"][-1]

    return {"chat": chat, "stream": stream, "embed": embed, "close": sock.close}


def dechunked(data: bytes, recv: Callable[[int], bytes]) -> Iterator[bytes]:
    """Yield the body bytes of each received block; trusting, as a floor may be."""
    while True:
        pieces: List[bytes] = []
        start = 0
        while True:
            mark = data.find(b"\r\n", start)
            if mark < 0:
                break
            size = int(data[start:mark], 16)
            if not size and len(data) >= mark + 4:
                yield b"".join(pieces)
                return
            if len(data) < mark + size + 4:
                break
            pieces.append(data[mark + 2:mark + 2 + size])
            start = mark + size + 4
        if pieces:
            yield b"".join(pieces)
        data = data[start:] + recv(65536)


def texts(blocks: Iterator[bytes]) -> Iterator[Any]:
    rest = b""
    for block in blocks:
        found = (rest + block).split(b"\n\n")
        rest = found.pop()
        for event in found:
            if event != b"data: [DONE]":
                yield text_of(json.loads(event[6:]))


def httpx_sse(base: str) -> Doings:
    """httpx with httpx-sse."""
    import httpx
    from httpx_sse import connect_sse

    client = httpx.Client(timeout=60)
    url = base + "/v1/chat/completions"

    def chat() -> Any:
        return client.post(url, json=body()).json()["choices"][0]["message"]["content"]

    def stream(order: str) -> Iterator[Any]:
        with connect_sse(client, "POST", url, json=streaming(order)) as source:
            for event in source.iter_sse():
                if event.data != "[DONE]":
                    yield text_of(json.loads(event.data))

    def embed() -> Any:
        reply = client.post(base + "/v1/embeddings", json={"model": "bench", "input": INPUTS})
        return reply.json()["data"][-1]["embedding"][-1]

    return {"chat": chat, "stream": stream, "embed": embed, "close": client.close}


def openai_sdk(base: str) -> Doings:
    """The openai package; its embeddings come as base64 unless asked otherwise."""
    import openai

    client = openai.OpenAI(base_url=base + "/v1", api_key="x", max_retries=0)

    def chat() -> Any:
        return client.chat.completions.create(**body()).choices[0].message.content

    def stream(order: str) -> Iterator[Any]:
        for chunk in client.chat.completions.create(**streaming(order)):
            yield chunk.choices[0].delta.content if chunk.choices else None

    def embed() -> Any:
        return client.embeddings.create(model="bench", input=INPUTS).data[-1].embedding[-1]

    return {"chat": chat, "stream": stream, "embed": embed, "close": client.close}


def litellm_sdk(base: str) -> Doings:
    """The litellm package."""
    import os

    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    litellm.telemetry = False
    litellm.suppress_debug_info = True
    fixed = {"api_base": base + "/v1", "api_key": "x"}

    def call(wire: Dict[str, Any]) -> Any:
        return litellm.completion(**{**wire, **fixed, "model": "hosted_vllm/bench", "num_retries": 0})

    def chat() -> Any:
        return call(body()).choices[0].message.content

    def stream(order: str) -> Iterator[Any]:
        for chunk in call(streaming(order)):
            yield chunk.choices[0].delta.content if chunk.choices else None

    def embed() -> Any:
        reply = litellm.embedding(model="hosted_vllm/bench", input=INPUTS, encoding_format="float", **fixed)
        return reply.data[-1]["embedding"][-1]

    return {"chat": chat, "stream": stream, "embed": embed}


CLIENTS: Dict[str, Callable[[str], Doings]] = {
    "ours": ours,
    "requests": requests_session,
    "http.client": http_client,
    "floor": floor,
    "httpx": httpx_sse,
    "openai": openai_sdk,
    "litellm": litellm_sdk,
}


def cost(work: Callable[[], Any], seconds: float, batch: int) -> float:
    """Return the CPU microseconds of one `work`, the median over batches within `seconds`."""
    for _ in range(3):
        work()
    costs: List[float] = []
    end = time.perf_counter() + seconds
    while not costs or time.perf_counter() < end:
        before = time.process_time()
        for _ in range(batch):
            work()
        costs.append((time.process_time() - before) / batch * 1e6)
    return statistics.median(costs)


def drained(items: Iterator[Any], least: int) -> None:
    count = sum(1 for _ in items)
    if count < least:
        raise AssertionError("%d items of %d" % (count, least))


def first_chunk(stream: Callable[[str], Iterator[Any]], seconds: float) -> float:
    """Return the microseconds from the write of a stream's first text to its arrival at the caller, the median."""
    delays: List[float] = []
    end = time.perf_counter() + seconds
    while len(delays) < 5 or time.perf_counter() < end:
        delay = None
        for text in stream("bench:paced:1:15"):
            if delay is None and text and text[0] == "@":
                delay = time.monotonic_ns() / 1000.0 - int(text[1:])
        assert delay is not None
        delays.append(delay)
    return statistics.median(delays)


def measure(name: str, base: str, seconds: float) -> Dict[str, Any]:
    """Return what a client costs, in CPU microseconds but for ``first_chunk``."""
    doings = CLIENTS[name](base)
    stream = doings["stream"]
    order = "bench:burst:%d" % EVENTS
    result: Dict[str, Any] = {"name": name, "chat": cost(doings["chat"], seconds, 20)}
    result["chunk"] = cost(lambda: drained(stream(order), EVENTS), seconds, 1) / EVENTS
    result["embed"] = cost(doings["embed"], seconds, 1)
    result["first_chunk"] = first_chunk(stream, seconds)
    if "responses" in doings:
        convert = doings["responses"]
        result["responses"] = cost(lambda: drained(convert(order), EVENTS), seconds, 1) / EVENTS
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
    if "close" in doings:
        doings["close"]()
    return result


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
