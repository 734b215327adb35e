#!/usr/bin/env python3
"""A fleet of make-believe vLLM servers with what routing is about: slots, queues, prefix caches; it prints their ports.

Each server runs at most SLOTS requests at a time, the rest wait in its queue, as vLLM does (max_num_seqs). A prompt is
cut into blocks of 16 tokens, a token being four characters of the messages; blocks whose whole prefix is in the
server's LRU cache of BLOCKS blocks cost nothing, each other token PREFILL microseconds, and the prefills of a server
run one at a time, as on a busy GPU. Then MAX_TOKENS tokens come, DECODE milliseconds each.
"""

import argparse
import asyncio
import collections
import hashlib
import json
from typing import Any, Dict, List

MODEL = "sim"
_BLOCK = 64  # characters of 16 tokens
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"


class Server:
    """One of them; `slow` multiplies its times."""

    def __init__(self, options: argparse.Namespace, slow: float) -> None:
        self._blocks = options.blocks
        self._prefill = options.prefill_us * 1e-6 * slow
        self._decode = options.decode_ms * 1e-3 * slow
        self._slots = asyncio.Semaphore(options.slots)
        self._gpu = asyncio.Lock()
        self._cache: "collections.OrderedDict[bytes, None]" = collections.OrderedDict()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while True:
                line, *rest = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
                fields = {name.lower(): value.strip() for name, _, value in (field.partition(b":") for field in rest)}
                body = await _body(reader, fields)
                if line.split(b" ")[1].split(b"?")[0] == b"/v1/chat/completions":
                    await self._chat(writer, json.loads(body))
                else:
                    listed = {"id": MODEL, "object": "model", "created": 1, "owned_by": "vllm", "max_model_len": 32768}
                    _reply(writer, {"object": "list", "data": [listed]})
                await writer.drain()
                if fields.get(b"connection", b"").lower() == b"close":
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _chat(self, writer: asyncio.StreamWriter, asked: Dict[str, Any]) -> None:
        text = "".join("%s:%s\n" % (message["role"], message["content"]) for message in asked["messages"])
        count, total = asked.get("max_tokens") or 16, len(text) // 4
        async with self._slots:
            blocks = _cut(text)
            async with self._gpu:
                cached = self._seen(blocks) * 16
                await asyncio.sleep((total - cached) * self._prefill)
                self._keep(blocks)
            usage = {"prompt_tokens": total, "completion_tokens": count, "total_tokens": total + count,
                     "prompt_tokens_details": {"cached_tokens": cached}}
            if asked.get("stream"):
                await self._stream(writer, count, usage)
                return
            await asyncio.sleep(self._decode * count)
            message = {"role": "assistant", "content": " ".join("w%d" % number for number in range(count))}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
            _reply(writer, {"id": "chatcmpl-x", "object": "chat.completion", "created": 1, "model": MODEL,
                            "choices": [choice], "usage": usage})

    async def _stream(self, writer: asyncio.StreamWriter, count: int, usage: Dict[str, Any]) -> None:
        writer.write(_HEAD)
        _event(writer, [_choice({"role": "assistant", "content": ""})])
        for number in range(count):
            await asyncio.sleep(self._decode)
            if writer.is_closing():
                return
            _event(writer, [_choice({"content": "w%d " % number}, None if number < count - 1 else "stop")])
        _event(writer, [], usage=usage)
        writer.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    def _seen(self, blocks: List[bytes]) -> int:
        count = 0
        for block in blocks:
            if block not in self._cache:
                break
            self._cache.move_to_end(block)
            count += 1
        return count

    def _keep(self, blocks: List[bytes]) -> None:
        for block in blocks:
            self._cache[block] = None
            self._cache.move_to_end(block)
        while len(self._cache) > self._blocks:
            self._cache.popitem(last=False)


def _cut(text: str) -> List[bytes]:
    digest, found = hashlib.blake2b(digest_size=8), []
    for at in range(0, len(text) - _BLOCK + 1, _BLOCK):
        digest.update(text[at:at + _BLOCK].encode())
        found.append(digest.digest())
    return found


async def _body(reader: asyncio.StreamReader, fields: Dict[bytes, bytes]) -> bytes:
    if b"transfer-encoding" not in fields:
        return await reader.readexactly(int(fields.get(b"content-length", 0)))
    body = b""
    while True:
        size = int((await reader.readline()).split(b";")[0], 16)
        body += await reader.readexactly(size)
        await reader.readexactly(2)
        if not size:
            return body


def _reply(writer: asyncio.StreamWriter, payload: Dict[str, Any]) -> None:
    data = json.dumps(payload).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data)
    writer.write(head + data)


def _choice(delta: Dict[str, Any], finish: Any = None) -> Dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


def _event(writer: asyncio.StreamWriter, choices: List[Dict[str, Any]], **more: Any) -> None:
    payload = {"id": "chatcmpl-x", "object": "chat.completion.chunk", "created": 1, "model": MODEL,
               "choices": choices, **more}
    writer.write(_chunk(b"data: %s\n\n" % json.dumps(payload, separators=(",", ":")).encode()))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slow", default="1,1,1,1", help="a factor for each server")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=5000)
    parser.add_argument("--prefill-us", type=float, default=60)
    parser.add_argument("--decode-ms", type=float, default=3)
    options = parser.parse_args()
    listening = [
        await asyncio.start_server(Server(options, float(slow)).serve, "127.0.0.1", 0, backlog=1024, limit=1 << 22)
        for slow in options.slow.split(",")
    ]
    print(",".join(str(server.sockets[0].getsockname()[1]) for server in listening), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        pass
