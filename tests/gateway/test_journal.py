"""What is made of ended requests, and that nobody waits for it."""

import logging
import os
import threading
from typing import Any, Iterator, Tuple

import pytest

from faces import LONG, log_lines, until
from vllm_bridge.config.settings import ProviderConfig
from vllm_bridge.gateway import access_log
from vllm_bridge.gateway import journal as journal_module
from vllm_bridge.gateway.access_log import Output
from vllm_bridge.gateway.journal import Entry, Journal
from vllm_bridge.gateway.metrics import Metrics
from vllm_bridge.server.request import Request
from vllm_bridge.vllm import VLLMProvider

TOTAL = 'vllm_bridge_requests_total{operation="embedding",model="m",status="200"} %d\n'
FLIGHT = 'vllm_bridge_requests_in_flight{operation="embedding"} %d\n'


@pytest.fixture
def journal() -> Iterator[Journal]:
    with VLLMProvider(config=ProviderConfig(keys=[{"url": "http://gpu:8000"}])) as provider:
        found = Journal(Metrics(2), provider, "json")
        yield found
        found.close()
        until(lambda: not any(thread.name == "vllm-bridge-journal" for thread in threading.enumerate()))


def entry(journal: Journal) -> Entry:
    body: Any = None
    found = Entry(Request("POST", "/v1/embeddings", "HTTP/1.1", {"x-request-id": "r-1"}, "127.0.0.1", body))
    found.operation = "embedding"
    found.model = "m"
    journal.begin(found)
    return found


def end(journal: Journal, found: Entry) -> None:
    found.status = 200
    journal.end(found)


def test_requests_are_counted_and_logged_soon_after_their_end(journal: Journal) -> None:
    with log_lines() as lines:
        end(journal, entry(journal))
        until(lambda: lines)
    assert (lines[0]["status"], lines[0]["path"], lines[0]["request_id"]) == (200, "/v1/embeddings", "r-1")
    assert TOTAL % 1 in journal.text().decode()


def test_whoever_asks_for_the_numbers_gets_all_of_them(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_TICK", LONG)
    first, second = entry(journal), entry(journal)
    assert FLIGHT % 2 in journal.text().decode()
    end(journal, first)
    text = journal.text().decode()
    assert FLIGHT % 1 in text and TOTAL % 1 in text
    end(journal, second)
    text = journal.text().decode()
    assert FLIGHT % 0 in text and TOTAL % 2 in text


def test_all_are_there_when_it_is_closed() -> None:
    with VLLMProvider("http://gpu:8000") as provider, log_lines() as lines:
        journal = Journal(Metrics(), provider, "json")
        for _ in range(100):
            end(journal, entry(journal))
        journal.close()
        assert len(lines) == 100


def test_without_a_thread_the_requests_do_it_themselves(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(thread: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched, log_lines() as lines:
        patched.setattr(threading.Thread, "start", none)
        patched.setattr(journal_module, "_MOST_WAITING", 5)
        for _ in range(6):
            end(journal, entry(journal))
        assert len(lines) == 6
    with log_lines() as lines:  # and once there is one again
        end(journal, entry(journal))
        until(lambda: lines)


def test_the_thread_ends_when_there_is_nothing_to_do_and_comes_back(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_TICK", 0.01)
    for _ in range(2):
        with log_lines() as lines:
            end(journal, entry(journal))
            until(lambda: lines)
        until(lambda: not any(thread.name == "vllm-bridge-journal" for thread in threading.enumerate()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no worker processes here")
def test_a_child_counts_its_own(journal: Journal) -> None:
    end(journal, entry(journal))
    under_way = entry(journal)
    journal.settle()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            journal.claim(1)
            end(journal, entry(journal))
            code = 0 if TOTAL % 2 in journal.text().decode() else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    text = journal.text().decode()
    assert TOTAL % 2 in text and FLIGHT % 1 in text
    end(journal, under_way)


# ---------------------------------------------------------------- who reads the log


@pytest.fixture
def pipe() -> Iterator[Tuple[int, Output]]:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="ascii") as stream:
        yield reader, Output(stream)
    os.close(reader)


def test_lines_that_nobody_reads_are_dropped_and_counted(pipe: Tuple[int, Output]) -> None:
    reader, output = pipe
    line = "x" * 99 + "\n"
    for _ in range(40000):  # 4 MB; a pipe takes 64 KiB
        output.write(line)
    assert 20000 < output.dropped < 40000
    got = b""
    while len(got) < 100 * (40000 - output.dropped):
        got += os.read(reader, 65536)
        output.flush()
    assert set(got.split(b"\n")) == {line[:-1].encode(), b""}
    output.write("and on\n")
    assert os.read(reader, 100) == b"and on\n"


def test_lines_wait_for_a_slow_reader_and_stay_in_order(pipe: Tuple[int, Output]) -> None:
    reader, output = pipe
    for number in range(20000):
        output.write("%d\n" % number)
    assert not output.dropped
    reading = threading.Thread(target=output.flush, args=(LONG,))
    reading.start()
    got = b""
    while got.count(b"\n") < 20000:
        got += os.read(reader, 1000)
    reading.join(LONG)
    assert got.split() == [b"%d" % number for number in range(20000)]


def test_a_reader_that_has_gone_harms_nobody() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        output = Output(stream)
        for _ in range(3):
            output.write("line\n")
        output.flush(LONG)


def test_what_an_encoding_does_not_have(pipe: Tuple[int, Output]) -> None:
    reader, output = pipe
    output.write("ä\n")
    assert os.read(reader, 100) == b"\\xe4\n"


def test_messages_do_not_wait_for_their_reader_either(pipe: Tuple[int, Output]) -> None:
    reader, output = pipe
    logger = logging.getLogger("vllm_bridge.test_journal")
    handler = access_log.Lines(output)
    logger.addHandler(handler)
    try:
        for _ in range(2000):
            logger.warning("%s", "y" * 1000)
    finally:
        logger.removeHandler(handler)
    assert output.dropped > 0
