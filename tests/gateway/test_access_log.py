"""Lines of the access log, and where the log goes."""

import io
import json
import logging
import os
from typing import Iterator, List

import pytest

from vllm_bridge.gateway import access_log


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    names = ("vllm_bridge", "vllm_bridge.access")
    before: List[tuple] = []  # type: ignore[type-arg]
    for name in names:
        logger = logging.getLogger(name)
        before.append((logger, logger.handlers[:], logger.level, logger.propagate))
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


def test_a_line_of_text() -> None:
    entry = {"method": "POST", "status": 200, "model": None, "total_ms": 1.5, "path": "/v1/x"}
    assert access_log.line(entry, "text") == "method=POST status=200 total_ms=1.5 path=/v1/x"


@pytest.mark.parametrize("value", ["a b", "a\nstatus=200", 'a"', "a=b", "a\u2028b", "\x1b[31m", "a\\", "ä"])
def test_what_a_client_chose_stays_in_its_field(value: str) -> None:
    line = access_log.line({"model": value}, "text")
    assert line.isascii() and line.isprintable()
    assert json.loads(line[len("model="):]) == value


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_name_of_megabytes_is_cut(log_format: str) -> None:
    line = access_log.line({"model": "m" * 20000000, "path": "/" + "\n" * 300000, "status": 200}, log_format)
    assert len(line) < 5000 and "m" * 400 in line and "200" in line


FORGED = "x\r\n2026-11-23T00:00:00Z ERROR worker 0 (pid 1) died\u2028\x1b[31mred"


def test_nobody_forges_a_message() -> None:
    errors = io.StringIO()
    access_log.set_up("text", io.StringIO(), errors)
    logging.getLogger("vllm_bridge.gateway").warning("tool '%s'", FORGED)
    try:
        raise ValueError(FORGED)
    except ValueError:
        logging.getLogger("vllm_bridge.gateway").error("failed", exc_info=True)
    lines = errors.getvalue().split("\n")
    assert lines.pop() == "" and all(line.isprintable() for line in lines)
    assert [line.split(" ")[1] for line in lines if not line.startswith("  ")] == ["WARNING", "ERROR"]
    assert any("ValueError: x" in line for line in lines)


def test_a_line_of_json() -> None:
    entry = {"model": "a\nb", "server": None, "status": 200}
    line = access_log.line(entry, "json")
    assert json.loads(line) == entry and "\n" not in line


def test_lines_go_out_and_messages_to_the_errors() -> None:
    out, errors = io.StringIO(), io.StringIO()
    access_log.set_up("text", out, errors)
    access_log.logger.info("%s", "status=200")
    logging.getLogger("vllm_bridge.gateway").warning("one %s", "word")
    logging.getLogger("vllm_bridge").info("not shown")
    assert out.getvalue() == "status=200\n"
    assert errors.getvalue().endswith("Z WARNING one word\n") and errors.getvalue().count("\n") == 1


def test_messages_as_json() -> None:
    out, errors = io.StringIO(), io.StringIO()
    access_log.set_up("json", out, errors)
    try:
        raise ValueError("a\nb")
    except ValueError:
        logging.getLogger("vllm_bridge.gateway").error("failed", exc_info=True)
    (line,) = errors.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["message"]) == ("ERROR", "failed")
    assert "ValueError" in entry["traceback"] and entry["time"].endswith("Z")


def test_lines_are_written_whole_for_other_workers_write_too(monkeypatch: pytest.MonkeyPatch) -> None:
    written: List[bytes] = []

    def write(number: int, data: bytes) -> int:
        written.append(data)
        return len(data)

    reader, writer = os.pipe()
    with open(reader, "rb"), open(writer, "w") as stream:
        monkeypatch.setattr(access_log.os, "write", write)
        access_log.Output(stream).write("".join("%03d %s\n" % (number, "x" * 300) for number in range(40)))
    assert len(written) > 2 and all(block.endswith(b"\n") and len(block) <= 4096 for block in written)
