"""The script that people write: ``batch_peer.py openai|aiohttp BASE_URL IN OUT CONCURRENCY``.

Run with the interpreter in which the package is installed; nothing here imports the rest of the benchmark.
"""

import asyncio
import json
import sys
from typing import Any, Dict


async def main(name: str, base: str, requests: str, answers: str, concurrency: int) -> None:
    """Answer a file of requests, at most so many at a time."""
    ask, close = {"openai": by_openai, "aiohttp": by_aiohttp}[name](base, concurrency)
    room = asyncio.Semaphore(concurrency)
    tasks = set()
    with open(answers, "w") as out, open(requests) as lines:

        async def answer(line: Dict[str, Any]) -> None:
            try:
                out.write(json.dumps({"custom_id": line["custom_id"], "response": await ask(line)}) + "\n")
            finally:
                room.release()

        for text in lines:
            await room.acquire()
            task = asyncio.ensure_future(answer(json.loads(text)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
    await close()


def by_openai(base: str, concurrency: int) -> Any:
    import openai

    client = openai.AsyncOpenAI(base_url=base + "/v1", api_key="x")

    async def ask(line: Dict[str, Any]) -> Any:
        return (await client.chat.completions.create(**line["body"])).model_dump()

    return ask, client.close


def by_aiohttp(base: str, concurrency: int) -> Any:
    import aiohttp

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency))

    async def ask(line: Dict[str, Any]) -> Any:
        async with session.post(base + line["url"], json=line["body"]) as reply:
            reply.raise_for_status()
            return await reply.json()

    return ask, session.close


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])))
