#!/usr/bin/env python3
"""Conversations of several turns through a gateway; prints one JSON line: times to the first token, the end, the cache.

Each session has a system prompt (one of SYSTEMS, shared by sessions), then TURNS messages of its user, each answered by
a stream whose text joins the next turn's prompt. All sessions run at once, with THINK seconds on average between turns.
Sizes are in characters, answers in tokens (lowest and highest).
"""

import argparse
import asyncio
import json
import random
import statistics
import time
import urllib.parse
from typing import Any, AsyncIterator, Dict, List, NamedTuple, Optional

from fleet_servers import MODEL


class Turn(NamedTuple):
    """What came of one request."""

    status: int
    first: Optional[float]
    text: str
    prompt: int
    cached: int


async def ask(options: argparse.Namespace, messages: List[Dict[str, str]], count: int, session: int) -> Turn:
    """Make one request and read its stream."""
    url = urllib.parse.urlsplit(options.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port, limit=1 << 22)
    data = json.dumps({"model": MODEL, "messages": messages, "max_tokens": count, "stream": True,
                       "stream_options": {"include_usage": True}}).encode()
    extra = "".join("%s\r\n" % header.format(session=session) for header in options.header)
    request = (
        "POST %s/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
        "Connection: close\r\n%sContent-Length: %d\r\n\r\n" % (url.path, url.port or 80, extra, len(data))
    )
    started = time.perf_counter()
    writer.write(request.encode() + data)
    status = int((await reader.readline()).split()[1])
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    first: Optional[float] = None
    words: List[str] = []
    usage: Dict[str, Any] = {}
    async for line in _unchunked(reader) if b"\r\ntransfer-encoding: chunked\r\n" in b"\r\n" + head else reader:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            word = "".join(choice.get("delta", {}).get("content") or "" for choice in event.get("choices", ()))
            if word:
                first = first or time.perf_counter() - started
                words.append(word)
            usage = event.get("usage") or usage
    writer.close()
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Turn(status, first, "".join(words), usage.get("prompt_tokens", 0), cached)


async def _unchunked(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield the lines of a chunked body; a gateway may end a chunk within a line."""
    rest = b""
    while True:
        size = int((await reader.readline()).split(b";")[0], 16)
        rest += await reader.readexactly(size)
        await reader.readline()
        *lines, rest = rest.split(b"\n")
        for line in lines:
            yield line
        if not size:
            return


async def converse(options: argparse.Namespace, session: int, turns: List[Turn]) -> None:
    """Hold one conversation."""
    mine = random.Random(options.seed * 1000 + session)
    shared = random.Random(options.seed * 77 + session % options.systems)
    low, high = map(int, options.answer.split(","))
    messages = [{"role": "system", "content": _words(shared, "qrstuvwxyz", options.system)}]
    await asyncio.sleep(mine.random() * 0.5)
    for _ in range(options.turns):
        messages.append({"role": "user", "content": _words(mine, "abcdefghijklmnop", options.user)})
        turn = await ask(options, messages, mine.randint(low, high), session)
        turns.append(turn)
        messages.append({"role": "assistant", "content": turn.text})
        await asyncio.sleep(mine.expovariate(1 / options.think) if options.think else 0)


def _words(source: random.Random, letters: str, size: int) -> str:
    return " ".join("".join(source.choice(letters) for _ in range(7)) for _ in range(size // 8))


async def main() -> None:
    """Hold all conversations and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="the gateway's, up to /v1")
    for name, default in (("sessions", 64), ("turns", 8), ("system", 4000), ("systems", 8), ("user", 800), ("seed", 1)):
        parser.add_argument("--" + name, type=int, default=default)
    parser.add_argument("--answer", default="24,96")
    parser.add_argument("--think", type=float, default=0.2)
    parser.add_argument("--header", action="append", default=[], help="with {session} in it; may be repeated")
    options = parser.parse_args()
    turns: List[Turn] = []
    started = time.perf_counter()
    await asyncio.gather(*(converse(options, session, turns) for session in range(options.sessions)))
    seconds = time.perf_counter() - started
    firsts = sorted(turn.first for turn in turns if turn.status == 200 and turn.first is not None)
    print(json.dumps({
        "done_s": seconds, "failed": len(turns) - len(firsts),
        "first_mean_ms": 1000 * statistics.mean(firsts) if firsts else None,
        "first_p99_ms": 1000 * firsts[min(len(firsts) - 1, len(firsts) * 99 // 100)] if firsts else None,
        "cached": sum(turn.cached for turn in turns) / max(1, sum(turn.prompt for turn in turns)),
    }))


if __name__ == "__main__":
    asyncio.run(main())
