"""The same batch on several processes, by engines that exist. Each worker keeps to its share of the concurrency."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from vllm_bridge import VLLMProvider
from vllm_bridge.batch import run
from vllm_bridge.echo import EchoServer

COUNT, WORKERS, CONCURRENCY = 60, 2, 4


def answered(requests, url):
    """Answer a part of the requests in a worker."""
    with VLLMProvider(url) as vllm:
        results = run(requests, vllm, model="echo", concurrency=CONCURRENCY // WORKERS)
        return [(result.request["custom_id"], result.reply.choices[0].message.content) for result in results]


def requests():
    return [{"custom_id": str(number), "messages": [{"role": "user", "content": "number %d" % number}]}
            for number in range(COUNT)]


def parts(size=20):
    return [requests()[start:start + size] for start in range(0, COUNT, size)]


@pytest.fixture
def server():
    """A server that answers slowly enough for requests to meet; at its end no more of them than may have met."""
    most = []
    with EchoServer(delay=0.005) as server:
        count = server._count_running

        def counted(change):
            count(change)
            most.append(server.running)

        server._count_running = counted
        yield server
        assert 1 < max(most) <= CONCURRENCY


def check(found):
    assert sorted(found) == sorted((str(number), "You said: number %d" % number) for number in range(COUNT))


def test_multiprocessing(server):
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        done = pool.starmap(answered, [(part, server.url) for part in parts()])
        pool.close()
        pool.join()
    check([pair for part in done for pair in part])


def test_concurrent_futures(server):
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        done = [pool.submit(answered, part, server.url) for part in parts()]
        check([pair for part in done for pair in part.result()])
