"""What the clients of a soak run send, what may become of it, and the clients themselves."""

import collections
import http.client
import json
import random
import socket
import struct
import threading
import time
from typing import Any, Callable, Counter, Dict, FrozenSet, List, NamedTuple, Optional, Tuple

CHAT = "/v1/chat/completions"
LONG = 60.0  # seconds: a client that waits longer reports it
WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()
OK = "ok"
BROKEN = frozenset(("502", "broken stream"))  # what a server that dies in the middle leaves


class Case(NamedTuple):
    """One kind of request. ``allowed`` are its outcomes; one that is not `OK` is a failure by the case's own cause."""

    name: str
    send: Callable[["Client", str], str]
    allowed: FrozenSet[str]


class Client:
    """One connection to the gateway, opened again after a fault."""

    def __init__(self, port: int, api_key: str) -> None:
        self._port = port
        self._headers = {"Authorization": "Bearer " + api_key, "Content-Type": "application/json"}
        self._connection: Optional[http.client.HTTPConnection] = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def open(self, method: str, path: str, body: Any = None, **headers: str) -> http.client.HTTPResponse:
        """Send a request and return its reply, still to be read."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=LONG)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {name: value for name, value in {**self._headers, **headers}.items() if value}
        self._connection.request(method, path, data, sent)
        return self._connection.getresponse()

    def whole(self, method: str, path: str, body: Any = None, **headers: str) -> Tuple[int, bytes]:
        """Return status and body of a reply; an error's body must have the form that OpenAI's clients know."""
        response = self.open(method, path, body, **headers)
        data = response.read()
        if response.status >= 400 and not json.loads(data)["error"]["message"]:
            raise ValueError("an error without a message")
        return response.status, data

    def drop(self, reset: bool = False) -> None:
        """Leave without a word, or with a reset."""
        connection = self._connection
        if connection is not None and connection.sock is not None and reset:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def raw(self, data: bytes) -> bytes:
        """Send bytes on a connection of their own and return what comes back until it ends."""
        with socket.create_connection(("127.0.0.1", self._port), timeout=LONG) as sock:
            sock.sendall(data)
            return b"".join(iter(lambda: sock.recv(65536), b""))


def _chat(text: str, **more: Any) -> Dict[str, Any]:
    return {"model": "vllm/echo", "messages": [{"role": "user", "content": text}], **more}


def _said(directives: str, text: str) -> str:
    return "%s %s" % (directives, text) if directives else text


def _expect(found: Any, wanted: Any) -> str:
    return OK if found == wanted else "wrong answer: %.80r instead of %.80r" % (found, wanted)


def _json(client: Client, path: str, body: Dict[str, Any], text: Callable[[Any], Any], wanted: Any) -> str:
    status, data = client.whole("POST", path, body)
    return _expect(text(json.loads(data)), wanted) if status == 200 else str(status)


def _events(client: Client, path: str, body: Dict[str, Any]) -> Tuple[int, List[Any], bool]:
    """Return the status of a stream, the payloads of its events, and whether it came to its end mark."""
    response = client.open("POST", path, dict(body, stream=True))
    data = response.read()
    if response.status != 200:
        return response.status, [], False
    blocks = [block.rpartition("data: ")[2] for block in data.decode().split("\n\n") if "data: " in block]
    done = bool(blocks) and blocks[-1] == "[DONE]"
    return 200, [json.loads(block) for block in blocks if block != "[DONE]"], done


def chat(directives: str = "") -> Callable[[Client, str], str]:
    """Return a chat completion whose text begins with directives for the stand-in."""
    def send(client: Client, text: str) -> str:
        return _json(client, CHAT, _chat(_said(directives, text)),
                     lambda reply: reply["choices"][0]["message"]["content"], "You said: " + text)

    return send


def chat_stream(directives: str = "") -> Callable[[Client, str], str]:
    def send(client: Client, text: str) -> str:
        status, chunks, done = _events(client, CHAT, _chat(_said(directives, text)))
        if status != 200:
            return str(status)
        if not done:
            return "broken stream" if chunks and "error" in chunks[-1] else "a stream without end or error"
        pieces = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
        return _expect("".join(pieces), "You said: " + text)

    return send


def responses_stream(directives: str = "") -> Callable[[Client, str], str]:
    def send(client: Client, text: str) -> str:
        status, events, _ = _events(client, "/v1/responses", {"model": "echo", "input": _said(directives, text)})
        if status != 200:
            return str(status)
        last = events[-1] if events else {}
        if last.get("type") in ("response.failed", "error"):
            return "broken stream"
        if last.get("type") != "response.completed":
            return "a stream without end or error"
        return _expect(last["response"]["output"][0]["content"][0]["text"], "You said: " + text)

    return send


def completion(client: Client, text: str) -> str:
    return _json(client, "/v1/completions", {"model": "echo", "prompt": text, "max_tokens": 100},
                 lambda reply: reply["choices"][0]["text"].strip(), "You said: " + text)


def embedding(client: Client, text: str) -> str:
    return _json(client, "/v1/embeddings", {"model": "echo", "input": [text] * 5},
                 lambda reply: [len(row["embedding"]) for row in reply["data"]], [8] * 5)


def rerank(client: Client, text: str) -> str:
    body = {"model": "echo", "query": text, "documents": ["nothing of it", text]}
    return _json(client, "/v1/rerank", body, lambda reply: [row["index"] for row in reply["results"]], [1, 0])


def responses(client: Client, text: str) -> str:
    return _json(client, "/v1/responses", {"model": "echo", "input": text},
                 lambda reply: reply["output"][0]["content"][0]["text"], "You said: " + text)


def transcription(client: Client, text: str) -> str:
    content = b"RIFF" + b"x" * random.choice((1000, 100000, 1000000))
    body = (b"--b\r\nContent-Disposition: form-data; name=model\r\n\r\necho\r\n--b\r\nContent-Disposition: form-data; "
            b'name=file; filename="a.wav"\r\n\r\n' + content + b"\r\n--b--\r\n")
    status, data = client.whole(
        "POST", "/v1/audio/transcriptions", body, **{"Content-Type": "multipart/form-data; boundary=b"}
    )
    return _expect(str(len(content)) in json.loads(data)["text"], True) if status == 200 else str(status)


def models(client: Client, text: str) -> str:
    status, data = client.whole("GET", "/v1/models")
    return _expect([model["id"] for model in json.loads(data)["data"]], ["vllm/echo"]) if status == 200 else str(status)


def page(path: str) -> Callable[[Client, str], str]:
    def send(client: Client, text: str) -> str:
        status, _ = client.whole("GET", path)
        return OK if status == 200 else str(status)

    return send


def refused(method: str, path: str, body: Any, status: int, **headers: str) -> Callable[[Client, str], str]:
    """Return a request that has to be refused."""
    def send(client: Client, text: str) -> str:
        return _expect(client.whole(method, path, body, **headers)[0], status)

    return send


def garbage(client: Client, text: str) -> str:
    return _expect(client.raw(b"\x16\x03\x01 hello\r\n\r\n")[:12], b"HTTP/1.1 400")


def leave(reset: bool, directives: str) -> Callable[[Client, str], str]:
    """Return a client that goes away inside a stream, or before its first byte."""
    def send(client: Client, text: str) -> str:
        if "!stall" in directives:
            body = json.dumps(_chat(directives, stream=True)).encode()
            key = client._headers["Authorization"].encode()
            head = b"POST %s HTTP/1.1\r\nHost: a\r\nAuthorization: %s\r\nContent-Length: %d\r\n\r\n"
            with socket.create_connection(("127.0.0.1", client._port), timeout=LONG) as sock:
                sock.sendall(head % (CHAT.encode(), key, len(body)) + body)
                time.sleep(0.05)
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return OK
        response = client.open("POST", CHAT, _chat(directives, stream=True))
        response.read(20)
        client.drop(reset)
        response.close()
        return OK

    return send


_NO_FAULT = frozenset((OK,))
QUIET: List[Case] = [
    Case(name, send, _NO_FAULT) for name, send in (
        ("chat", chat()), ("chat", chat()), ("chat stream", chat_stream()), ("chat stream", chat_stream()),
        ("slow stream", chat_stream("!slow 0.01")), ("comments", chat_stream("!comments")),
        ("pause", chat("!stall 0.1")), ("completion", completion), ("embedding", embedding), ("rerank", rerank),
        ("responses", responses), ("responses stream", responses_stream()), ("transcription", transcription),
        ("models", models), ("health", page("/health")), ("metrics", page("/metrics")),
    )
]
FAULTS: List[Case] = [
    Case(name, send, frozenset(allowed.split(","))) for name, send, allowed in (
        ("!error 400", chat("!error 400"), "400"), ("!error 404", chat_stream("!error 404"), "404"),
        ("!error 429", chat("!error 429"), "429"), ("!error 500", chat("!error 500"), "500"),
        ("!error 503", chat_stream("!error 503"), "503"), ("!error-in-200", chat("!error-in-200 400"), "400"),
        ("!error-in-200", chat_stream("!error-in-200 400"), "400"), ("!die", chat("!die"), "502"),
        ("!die", responses_stream("!die"), "502"), ("!die-after", chat_stream("!die-after 3"), "broken stream"),
        ("!die-after", chat("!die-after 1"), "502"), ("!cut-after", chat_stream("!cut-after 3"), "broken stream"),
        ("!error-after", chat_stream("!error-after 3 500"), "broken stream"),
        ("!error-after", responses_stream("!error-after 3 500"), "broken stream"),
        ("!abort", chat("!abort"), "502"), ("!abort", chat_stream("!abort"), "broken stream"),
        ("!stall", chat("!stall 8"), "504"), ("!stall-after", chat_stream("!stall-after 2 8"), "broken stream"),
    )
] + [
    Case(name, send, _NO_FAULT) for name, send in (
        ("client leaves", leave(False, "!slow 0.05 " + "word " * 100)),
        ("client resets", leave(True, "!slow 0.05 " + "word " * 100)),
        ("client leaves early", leave(False, "!stall 3")), ("client resets early", leave(True, "!stall 3")),
        ("no JSON", refused("POST", CHAT, b"{", 400)), ("no route", refused("GET", "/nowhere", None, 404)),
        ("no such model", refused("POST", CHAT, dict(_chat("a"), model="no"), 404)),
        ("a wrong key", refused("POST", CHAT, _chat("a"), 401, Authorization="Bearer wrong")), ("no HTTP", garbage),
    )
]


class Outages:
    """When a stand-in was not there, so that what broke because of it can be told from what must not break."""

    def __init__(self) -> None:
        self._kills: List[Tuple[float, float]] = []
        self._absences: List[Tuple[float, float]] = []
        self._lock = threading.Lock()

    def killing(self) -> None:
        """Note that a stand-in is about to be killed: what it is answering is lost."""
        self._begin(self._kills)
        self._begin(self._absences)

    def killed(self) -> None:
        """Note that it is dead: from now on nothing may be lost."""
        self._end(self._kills)

    def back(self) -> None:
        """Note that it is there again."""
        self._end(self._absences)

    def lost(self, begin: float, end: float) -> bool:
        """Tell whether a request that ran from `begin` to `end` may have been at a stand-in when it was killed."""
        return self._met(self._kills, begin, end)

    def away(self, begin: float, end: float) -> bool:
        """Tell whether a stand-in was away during a request."""
        return self._met(self._absences, begin, end)

    def _begin(self, spans: List[Tuple[float, float]]) -> None:
        with self._lock:
            spans.append((time.monotonic(), float("inf")))

    def _end(self, spans: List[Tuple[float, float]]) -> None:
        with self._lock:
            spans[-1] = (spans[-1][0], time.monotonic())

    def _met(self, spans: List[Tuple[float, float]], begin: float, end: float) -> bool:
        with self._lock:
            return any(begin <= stop and end >= start for start, stop in spans)


class Tally:
    """The outcomes of all requests."""

    def __init__(self) -> None:
        self.requests: Counter[str] = collections.Counter()
        self.injected: Counter[str] = collections.Counter()
        self.unexplained: Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def add(self, case: Case, outcome: str, lost: bool, away: bool) -> None:
        """Count one request; `lost` and `away` say what became of its server meanwhile."""
        with self._lock:
            self.requests[case.name] += 1
            if outcome in case.allowed:
                if outcome != OK:
                    self.injected["%s: %s" % (case.name, outcome)] += 1
            elif lost and outcome in BROKEN:
                self.injected["server killed: %s" % outcome] += 1
            elif away and outcome == "502" and OK not in case.allowed:
                # An error that is tried again elsewhere: the last word is that of the server that is away.
                self.injected["%s, and a server away: 502" % case.name] += 1
            else:
                self.unexplained["%s: %s" % (case.name, outcome)] += 1


class Traffic:
    """Clients that send what the current phase has, until they are told to stop or to rest."""

    def __init__(self, port: int, api_key: str, clients: int, tally: Tally, outages: Outages) -> None:
        self.cases: List[Case] = QUIET
        self._port = port
        self._api_key = api_key
        self._tally = tally
        self._outages = outages
        self._stop = threading.Event()
        self._go = threading.Event()
        self._resting = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]
        for thread in self._threads:
            thread.start()

    def run(self, cases: List[Case], seconds: float) -> None:
        """Let the clients send these cases for so long."""
        self.cases = cases
        self._go.set()
        time.sleep(seconds)

    def rest(self) -> None:
        """Wait until every client has finished its request and closed its connection."""
        self._go.clear()
        for _ in self._threads:
            self._resting.acquire()

    def stop(self) -> None:
        """End the clients."""
        self._stop.set()
        self._go.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        chosen = random.Random(number)
        client = Client(self._port, self._api_key)
        sent = 0
        while not self._stop.is_set():
            if not self._go.is_set():
                client.close()
                self._resting.release()
                self._go.wait()
                continue
            case = chosen.choice(self.cases)
            sent += 1
            text = "%d %d %s" % (number, sent, " ".join(chosen.choices(WORDS, k=chosen.randint(1, 20))))
            begin = time.monotonic()
            try:
                outcome = case.send(client, text)
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
                outcome = "%s: %.200s" % (type(error).__name__, error)
                client.close()
            end = time.monotonic()
            self._tally.add(case, outcome, self._outages.lost(begin, end), self._outages.away(begin, end))
        client.close()
