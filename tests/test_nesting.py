import subprocess
import sys

import pytest

from vllm_bridge import nesting

DEEPEST = 500
AT_A_BAD_MOMENT = """
import gc
import sys
from vllm_bridge.errors import BridgeError
from vllm_bridge.api import audio, body, decoding
from vllm_bridge.errors import error_from_body
from vllm_bridge.sse import Event


class Finalized:
    def __init__(self):
        self.cycle = self

    def __del__(self):
        self.first()

    def first(self):
        self.second()

    def second(self):
        pass


def event(text):
    return decoding.payload_of(Event(event="message", data=text.decode()))


sys.unraisablehook = lambda unraisable: None
for read in (
    body.decode, body.read_object, event,
    lambda text: audio.result(text, "application/json", "json"),
    lambda text: error_from_body(500, "application/json", text),
):
    for allocations in range(960, 1010):  # one of these lets the collector run at the interpreter's limit
        gc.collect()
        gc.set_threshold(allocations, 1000, 1000)
        for _ in range(3):
            Finalized()
        try:
            read(b"[" * 100000)
        except (BridgeError, RecursionError):
            pass
print("alive")
"""


def test_a_deep_reply_ends_no_process():
    ended = subprocess.run([sys.executable, "-c", AT_A_BAD_MOMENT], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (ended.stdout, ended.returncode) == (b"alive\n", 0), ended.stderr[-2000:]


@pytest.mark.parametrize("text", [
    "[" * DEEPEST + "]" * DEEPEST,
    '{"a":' * DEEPEST + "1" + "}" * DEEPEST,
    "[" + "[]," * 10000 + "[]]",
    '["%s"]' % ("[" * 10000),
    r'["\"%s", "\\", "%s"]' % ("[" * 10000, "{" * 10000),
    "[" * DEEPEST + '"' + "[" * 10000,
    '["' + r"\"[" * 100000,
    '["\\',
    "",
])
def test_what_is_not_deep(text):
    nesting._check(text)
    for encoding in ("utf-8", "utf-16", "utf-32"):
        nesting._check(text.encode(encoding))


@pytest.mark.parametrize("text", [
    "[" * (DEEPEST + 1),
    '{"a":' * (DEEPEST + 1) + "1",
    '[{"a":"]]",' * 300 + '"b":[',
    '["\\\\",' * (DEEPEST + 1),
])
def test_what_is_too_deep(text):
    for given in (text, text.encode(), text.encode("utf-16")):
        with pytest.raises(RecursionError, match="more than 500 levels"):
            nesting._check(given)


def test_loads():
    assert nesting.loads('{"a": [1, "[["]}') == nesting.loads(b'{"a": [1, "[["]}') == {"a": [1, "[["]}
    with pytest.raises(ValueError, match="Expecting value"):
        nesting.loads("")
    with pytest.raises(RecursionError):
        nesting.loads("[" * 100000)
