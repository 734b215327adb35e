"""Several servers that die, hang, break, sleep and come back while requests run."""

import json
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest

from scripted import Scripted, completion, named, nobody
from serving import LONG, serving, until
from vllm_bridge import (
    APITimeoutError, BridgeError, InternalServerError, NotFoundError, ProviderConfig, Trace, VLLMProvider,
)
from vllm_bridge.echo import EchoServer
from vllm_bridge.server.request import Answer, Request

JSON = [("Content-Type", "application/json")]
# What vLLM 0.32 says while it ends (kill_sigterm_drain_probe_v1_chat_completions_stream).
ENDING = {"error": {"message": "cannot schedule new futures after shutdown", "type": "InternalServerError",
                    "param": None, "code": 500}}
BROKEN = {"error": {"message": "CUDA error", "type": "InternalServerError", "param": None, "code": 500}}


def said(body: Any, status: int = 200) -> Answer:
    return Answer(status, JSON, json.dumps(body).encode())


class Fake:
    """A server that answers by a function, names its models, and can sleep as vLLM does."""

    def __init__(self, chat: Callable[[Any], Answer], models: Any = ("m",), sleeping: Optional[bool] = None) -> None:
        self.chat = chat
        self.models = models
        self.sleeping = sleeping
        self.asked: List[str] = []
        self.url = ""

    @property
    def chats(self) -> int:
        return self.asked.count("/v1/chat/completions")

    def __call__(self, request: Request) -> Answer:
        self.asked.append(request.path)
        body = request.body.read(100000)
        if request.path == "/v1/models":
            return said({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})
        if request.path == "/is_sleeping" and self.sleeping is not None:
            return said({"is_sleeping": self.sleeping})
        if request.path == "/wake_up":
            self.sleeping = False
            return said({"status": "awake", "tags": None})
        if request.path != "/v1/chat/completions":
            return said({"detail": "Not Found"}, 404)
        return self.chat(json.loads(body))


@contextmanager
def running(
    *fakes: Fake, keys: Any = (), routing: str = "expected_wait", **options: Any
) -> Iterator[VLLMProvider]:
    with ExitStack() as stack:
        for fake in fakes:
            server = stack.enter_context(serving(fake))
            fake.url = "http://127.0.0.1:%d" % server.server_address[1]
        config = {"keys": [{"url": fake.url, **more} for fake, more in zip(fakes, list(keys) + [{}] * len(fakes))],
                  "routing": routing}
        provider = VLLMProvider(config=ProviderConfig.from_dict(config, environ={}), **options)
        yield stack.enter_context(provider)


def good(body: Any) -> Answer:
    return said(completion("good"))


def ask(provider: VLLMProvider, text: str = "hi", model: str = "m") -> str:
    return str(provider.chat_completion(model=model, messages=[{"role": "user", "content": text}]).text)


def changes(provider: VLLMProvider, fake: Any) -> Dict[str, int]:
    return {change: count for (url, change), count in provider._caller.fleet.changes.items() if url == fake.url}


# ---------------------------------------------------------------- under load


@contextmanager
def load(provider: VLLMProvider, threads: int = 6) -> Iterator[List[Optional[BridgeError]]]:
    """Make calls, half of them streams, until the block ends; yield what has become of them: None is well."""
    results: List[Optional[BridgeError]] = []
    ended = threading.Event()

    def work(number: int) -> None:
        count = 0
        while not ended.is_set():
            count += 1
            text = "%d of %d" % (count, number)
            try:
                if count % 2:
                    assert text in ask(provider, text)
                else:
                    messages = [{"role": "user", "content": text}]
                    stream = provider.chat_completion_stream(model="m", messages=messages)
                    assert text in "".join(chunk.text or "" for chunk in stream)
                results.append(None)
            except BridgeError as error:
                results.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield results
    finally:
        ended.set()
        for worker in workers:
            worker.join(LONG)


def more(results: List[Any], count: int = 60) -> None:
    wanted = len(results) + count
    until(lambda: len(results) >= wanted)


def test_a_server_that_ends_and_comes_back_under_load(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "vllm_bridge.fleet")
    servers = [EchoServer(models=("m",)) for _ in range(3)]
    with ExitStack() as stack:
        for server in servers[1:]:
            stack.enter_context(server)
        servers[0].start()
        provider = stack.enter_context(VLLMProvider(*[server.url for server in servers], max_retries=2))
        with load(provider) as results:
            more(results)
            url, port = servers[0].url, servers[0].port
            servers[0].stop()
            more(results)
            until(lambda: bool(provider.cooling()))
            back = stack.enter_context(EchoServer(port=port, models=("m",)))
            until(lambda: not provider.cooling() and back.url == url)
            more(results)
    lost = [error for error in results if error is not None]
    # What the server had taken, and broke off: at most what ran at that moment.
    assert len(lost) <= 6 and all("hung up" in str(error) or "broke off" in str(error) for error in lost)
    # Once, or twice if an answer of its last moment came in behind the first refusal.
    told = [record.message.split(" (")[0] for record in caplog.records]
    assert told in ([url + ": away", url + ": back"], [url + ": away", url + ": back"] * 2)
    assert changes(provider, back) == dict.fromkeys(("away", "back"), len(told) // 2)


def test_requests_of_several_models_find_their_servers_under_load() -> None:
    with EchoServer(models=("chat", "m")) as one, EchoServer(models=("embed",)) as two, \
            EchoServer(models=("rank",)) as three, EchoServer(models=("whisper",)) as four, \
            VLLMProvider(one.url, two.url, three.url, four.url, max_retries=0) as provider, load(provider) as results:
        for _ in range(10):
            assert provider.embedding(model="embed", input="x").data
            assert provider.rerank(model="rank", query="x", documents=["x", "y"]).results
            assert provider.transcription(model="whisper", file=b"RIFF0000WAVEfmt ").text
            assert provider.text_completion(model="chat", prompt="x").choices
        more(results)
    assert results == [None] * len(results)


def test_servers_that_cannot_be_reached_are_no_attempts() -> None:
    with ExitStack() as stack:
        servers = [EchoServer(models=("m",)) for _ in range(4)]
        for server in servers:
            server.start()
        provider = stack.enter_context(VLLMProvider(*[server.url for server in servers], max_retries=0))
        assert ask(provider)
        provider.close()
        for server in servers[:3]:
            server.stop()
        stack.callback(servers[3].stop)
        assert {ask(provider, "hi %d" % number) for number in range(8)} == {
            "You said: hi %d" % number for number in range(8)}


# ---------------------------------------------------------------- one that is not well


def test_a_server_that_takes_requests_and_says_nothing_gets_fewer_and_gets_them_back() -> None:
    release = threading.Event()
    stuck = Fake(lambda body: said(completion("late")) if release.wait(LONG) else good(body))
    with running(stuck, Fake(good), timeout=0.3, max_retries=0) as provider:
        results = []
        for number in range(20):
            try:
                results.append(ask(provider, "question %d" % number))
            except APITimeoutError:
                results.append("")
        assert results.count("") == stuck.chats <= 2
        assert changes(provider, stuck) == {"away": 1}
        release.set()
        provider._caller.fleet.down[stuck.url].until = 0.0
        before = stuck.chats
        for number in range(20):
            assert ask(provider, "again %d" % number)
        assert stuck.chats > before and changes(provider, stuck)["back"] == 1


def test_a_server_that_does_not_even_name_its_models_is_avoided_until_it_does() -> None:
    with Scripted(["hold"]) as silent, running(Fake(good)) as other:
        with VLLMProvider(silent.url, other._caller.fleet.keys[0].url, max_retries=0) as provider:
            start = time.monotonic()
            for _ in range(5):
                assert ask(provider) == "good"
            assert time.monotonic() - start < 5.0 and not silent.posts


def test_a_server_that_answers_500_to_everything_gets_fewer_while_others_answer_well() -> None:
    broken, well = Fake(lambda body: said(BROKEN, 500)), Fake(good)
    with running(broken, well, max_retries=1, routing="round_robin") as provider:
        for number in range(40):
            assert ask(provider, "question %d" % number) == "good"
        assert broken.chats == 5 and changes(provider, broken) == {"away": 1}
        broken.chat = good
        provider._caller.fleet.down[broken.url].until = 0.0
        for number in range(10):
            assert ask(provider, "again %d" % number) == "good"
        assert broken.chats > 6


def test_one_callers_requests_do_not_close_a_server_for_others() -> None:
    def chat(body: Any) -> Answer:
        return said(BROKEN, 500) if "poison" in body["messages"][0]["content"] else good(body)

    one, two = Fake(chat), Fake(chat)
    with running(one, two, max_retries=1) as provider:
        for number in range(30):
            with pytest.raises(InternalServerError):
                ask(provider, "poison %d" % number)
            if number % 4 == 0:
                assert ask(provider, "question %d" % number) == "good"
        assert changes(provider, one) == changes(provider, two) == {}


def test_a_server_that_says_that_it_ends_is_left_at_once() -> None:
    ending, well = Fake(lambda body: said(ENDING, 500)), Fake(good)
    with running(ending, well, max_retries=1) as provider:
        for number in range(20):
            assert ask(provider, "question %d" % number) == "good"
        assert ending.chats == 1 and changes(provider, ending) == {"away": 1}


def test_a_server_that_hangs_up_without_a_word_is_avoided() -> None:
    with Scripted([*named("m"), "request", "rst"]) as one, running(Fake(good)) as other:
        with VLLMProvider(one.url, other._caller.fleet.keys[0].url, max_retries=2) as provider:
            failed = 0
            for number in range(10):
                try:
                    ask(provider, "question %d" % number)
                except BridgeError:
                    failed += 1
            assert failed == len(one.posts) <= 1, "it may have taken the request: that is not sent again"


# ---------------------------------------------------------------- asleep


def test_a_server_that_sleeps_is_not_asked_and_is_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    asleep, awake = Fake(good, sleeping=True), Fake(good, sleeping=False)
    with running(asleep, awake, max_retries=0, routing="round_robin") as provider:
        for number in range(10):
            assert ask(provider, "question %d" % number) == "good"
        assert asleep.chats == 0 and awake.chats == 10
        assert [status["state"] for status in provider.list_models()["key_statuses"]] == ["sleeping", "ready"]
        assert "%s: asleep" % asleep.url in caplog.text and not provider.cooling()
        asleep.sleeping = False
        assert [status["state"] for status in provider.list_models()["key_statuses"]] == ["ready", "ready"]
        for number in range(20):
            assert ask(provider, "again %d" % number) == "good"
        assert asleep.chats


def test_a_model_whose_servers_all_sleep_is_a_503_that_says_so() -> None:
    with running(Fake(good, sleeping=True), Fake(good, models=("other",)), max_retries=0) as provider:
        with pytest.raises(InternalServerError, match="sleeps") as caught:
            ask(provider)
        assert (caught.value.status_code, caught.value.code) == (503, "server_sleeping")


def test_a_key_may_say_that_its_server_is_to_be_woken() -> None:
    asleep, other = Fake(good, sleeping=True), Fake(good, models=("other",), sleeping=False)
    with running(asleep, other, keys=[{"wake": True}], max_retries=0) as provider:
        threads = [threading.Thread(target=ask, args=(provider,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        assert asleep.asked.count("/wake_up") == 1 and asleep.chats == 4
        assert changes(provider, asleep) == {"asleep": 1, "awake": 1}


def test_a_server_that_sleeps_is_not_woken_while_another_has_the_model() -> None:
    asleep, awake = Fake(good, sleeping=True), Fake(good)
    with running(asleep, awake, keys=[{"wake": True}], max_retries=0) as provider:
        assert {ask(provider, "question %d" % number) for number in range(5)} == {"good"}
        assert "/wake_up" not in asleep.asked


# ---------------------------------------------------------------- asked beside the requests


def test_what_is_quiet_is_asked_beside_the_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_bridge.client.fleet._LOOK", 0.0)
    monkeypatch.setattr("vllm_bridge.client.fleet._QUIET", 0.05)
    monkeypatch.setattr("vllm_bridge.client.fleet._ASKED", 0.0)
    release = threading.Event()
    stuck = Fake(lambda body: said(completion("late")) if release.wait(LONG) else good(body), sleeping=False)
    with running(stuck, Fake(good), keys=[{}, {"id": "good"}], max_retries=0) as provider:
        threads = [threading.Thread(target=ask, args=(provider, "question %d" % number)) for number in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: bool(stuck.chats))
        stuck.sleeping = True  # what it has taken stays there
        good_one = provider.with_options(key_id="good")
        until(lambda: bool(ask(good_one)) and changes(provider, stuck) == {"asleep": 1})
        release.set()
        for thread in threads:
            thread.join(LONG)


def test_what_the_servers_have_is_asked_again_beside_the_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Fake(good), Fake(good, models=("n",))
    with running(one, two, max_retries=0) as provider:
        assert ask(provider)
        two.models = ("n", "p")
        provider.tidy()
        assert two.asked.count("/v1/models") == 1, "not that soon"
        monkeypatch.setattr("vllm_bridge.client.models.REFRESHED", 0.0)
        provider.tidy()
        until(lambda: "p" in (provider._caller.fleet.servers[two.url].models or ()))


def test_a_trace_says_where_a_request_went() -> None:
    with running(Fake(good), Fake(good, models=("n",))) as provider:
        trace = Trace()
        ask(provider.with_options(trace=trace), model="n")
        assert trace.attempts == 1 and trace.server == provider._caller.fleet.keys[1].url
        with VLLMProvider(provider._caller.fleet.keys[0].url, nobody()) as other:
            assert ask(other)
            with pytest.raises(NotFoundError):
                ask(other, model="n")
