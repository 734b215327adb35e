"""The library in people's processes: Celery, gevent, eventlet, Flask, multiprocessing, fork, the end of a program."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, completion, delta, event

from vllm_bridge import VLLMProvider
from vllm_bridge.echo import EchoServer

ROOT = Path(__file__).resolve().parents[1]
LONG = 60.0  # seconds: no verdict hangs on it
ASK: Dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]}
SILENT = ["request", "hold"]
STARTED = ["request", SSE_HEAD + event(delta("a")), "hold"]  # one event, then silence


def run(program: str, *arguments: str, cwd: Any = ROOT) -> Any:
    """Run a program and return what its last line says, as JSON."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments], cwd=str(cwd), stdin=subprocess.DEVNULL,
        env=dict(os.environ, PYTHONPATH=str(ROOT)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=LONG,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def started(command: List[str], cwd: Any, until: str, **environ: str) -> Iterator["re.Match[str]"]:
    """Run a program until the block ends; it has begun once a line matches `until`."""
    process = subprocess.Popen(
        command, cwd=str(cwd), env=dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(cwd)]), **environ),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
        start_new_session=True,
    )
    killer = threading.Timer(LONG, os.killpg, [process.pid, signal.SIGKILL])
    killer.start()
    said: List[str] = []
    match = None
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            match = re.search(until, line)
            if match:
                break
        assert match is not None, "".join(said)
        drain = threading.Thread(target=process.stdout.read)
        drain.start()
        yield match
    finally:
        killer.cancel()
        killer.join()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except OSError:
            pass
        process.wait()
        if match is not None:
            drain.join()
        if process.stdout is not None:
            process.stdout.close()


# ---------------------------------------------------------------- Celery

JOBS = '''
import os
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from vllm_bridge import VLLMProvider

app = Celery("jobs", broker="filesystem://", backend="file://" + os.path.abspath("results"))
app.conf.update(
    broker_transport_options={"data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"},
    broker_connection_retry_on_startup=True, worker_enable_remote_control=False,
)
ASK = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]}

@app.task(soft_time_limit=1, time_limit=40)
def ask(url, way):
    vllm = VLLMProvider(url, timeout=(30, 30), max_retries=3)
    try:
        if way == "chat":
            return vllm.chat_completion(**ASK).text
        if way == "stream":
            return [chunk.text for chunk in vllm.chat_completion_stream(**ASK)]
        if way == "responses":
            return vllm.responses(model="echo", input="Hi").output_text
        return [event.type for event in vllm.responses_stream(model="echo", input="Hi")]
    except SoftTimeLimitExceeded:
        return "the soft limit"
    except BaseException as error:
        return repr(error)
'''


@pytest.fixture(scope="module")
def celery_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A worker with Celery's prefork pool and its broker of files; the folder that it works in."""
    pytest.importorskip("celery")
    folder = tmp_path_factory.mktemp("celery")
    for name in ("queue", "control", "results"):
        (folder / name).mkdir()
    (folder / "jobs.py").write_text(JOBS)
    command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "jobs", "worker", "--pool", "prefork", "-c", "2",
               "--loglevel", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    with started(command, folder, r"ready\.", C_FORCE_ROOT="1"):
        yield folder


CALL = '''
import json, sys
from jobs import ask
results = [ask.delay(*sys.argv[at:at + 2]) for at in range(1, len(sys.argv), 2)]
print(json.dumps([result.get(timeout=45) for result in results]))
'''


def test_a_soft_time_limit_reaches_its_task(celery_worker: Path) -> None:
    """The limit's exception is neither turned into an error of ours nor tried again, whatever the call waits for."""
    good = ["request", answer(completion("ok"))]
    with Scripted(SILENT) as silent, Scripted(STARTED) as midway, Scripted(good) as well:
        ways = [(silent, "chat"), (silent, "stream"), (silent, "responses"), (silent, "responses_stream"),
                (midway, "stream"), (midway, "responses_stream"), (well, "chat")]
        found = run(CALL, *[part for server, way in ways for part in (server.url, way)], cwd=celery_worker)
        assert found == ["the soft limit"] * 6 + ["ok"]
        assert len(silent.requests) == 4  # none of them was sent again


# ---------------------------------------------------------------- gevent, eventlet

GREEN = '''
import json, sys, time
%s
from vllm_bridge import VLLMProvider

ASK = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]}
silent, midway, slow = sys.argv[1:]
ticks = []

def tick():
    while True:
        sleep(0.01)
        ticks.append(1)

def told(call):
    began = time.monotonic()
    before = len(ticks)
    try:
        found = call()
    except Exception as error:
        found = "%%s %%s" %% (type(error).__name__, getattr(error, "code", None))
    return [found, time.monotonic() - began, len(ticks) - before]

spawn(tick)
patient = VLLMProvider(silent, max_retries=0)
begun = VLLMProvider(midway)
print(json.dumps({
    "timeout": told(lambda: patient.with_options(timeout=(1, 0.3)).chat_completion(**ASK)),
    "deadline": told(lambda: patient.with_options(deadline=0.3).chat_completion(**ASK)),
    "first event": told(lambda: patient.with_options(timeout=(1, 0.3)).chat_completion_stream(**ASK)),
    "idle": told(lambda: list(begun.with_options(stream_idle_timeout=0.3).chat_completion_stream(**ASK))),
    "stream deadline": told(lambda: list(begun.with_options(deadline=0.3).chat_completion_stream(**ASK))),
    "together": told(lambda: all_of(20, lambda: VLLMProvider(slow).chat_completion(**ASK).text)),
}))
'''
GEVENT = '''
from gevent import monkey
monkey.patch_all()
import gevent
from gevent import sleep, spawn
def all_of(count, call):
    jobs = [gevent.spawn(call) for _ in range(count)]
    return [job.get() for job in jobs]
'''
EVENTLET = '''
import eventlet
eventlet.monkey_patch()
from eventlet import sleep, spawn
def all_of(count, call):
    return [job.wait() for job in [eventlet.spawn(call) for _ in range(count)]]
'''


@pytest.mark.parametrize("name, first", [("gevent", GEVENT), ("eventlet", EVENTLET)])
def test_limits_hold_and_others_go_on(name: str, first: str) -> None:
    pytest.importorskip(name) if name == "gevent" else _importable(name)
    with Scripted(SILENT) as silent, Scripted(STARTED) as midway, EchoServer(delay=0.2) as slow:
        found = run(GREEN % first, silent.url, midway.url, slow.url)
    texts = found.pop("together")
    assert texts[0] == ["You said: Hi"] * 20
    for what, (error, seconds, ticks) in found.items():
        assert error.startswith("APITimeoutError"), what
        assert 0.25 < seconds < 20, what
        assert ticks >= 5, what  # the other greenlet was not stopped


def _importable(name: str) -> None:
    """Skip where a package is missing, without importing it here: eventlet warns."""
    if subprocess.call([sys.executable, "-W", "ignore", "-c", "import " + name], stderr=subprocess.DEVNULL):
        pytest.skip("%s is not there" % name)


VIEW = '''
import os
from flask import Flask
from vllm_bridge import APITimeoutError, VLLMProvider

app = Flask(__name__)
ASK = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]}
silent = VLLMProvider(os.environ["SILENT"], timeout=(1, 0.3), max_retries=0)
slow = VLLMProvider(os.environ["SLOW"])

@app.route("/silent")
def limited():
    try:
        return silent.chat_completion(**ASK).text
    except APITimeoutError:
        return "timeout"

@app.route("/slow")
def answered():
    return slow.chat_completion(**ASK).text
'''


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_a_flask_view_under_gunicorn(kind: str, tmp_path: Path) -> None:
    for name in ("flask", "gunicorn") + (("gevent",) if kind == "gevent" else ()):
        pytest.importorskip(name)
    (tmp_path / "view.py").write_text(VIEW)
    command = [sys.executable, "-W", "ignore", "-m", "gunicorn", "-k", kind, "-b", "127.0.0.1:0", "--threads", "4",
               "view:app"]
    with Scripted(SILENT) as silent, EchoServer(delay=0.1) as slow:
        with started(command, tmp_path, r"Listening at: (http://\S+)", SILENT=silent.url, SLOW=slow.url) as match:
            texts: List[str] = []

            def get(path: str) -> None:
                texts.append(urllib.request.urlopen(match.group(1) + path, timeout=LONG).read().decode())

            threads = [threading.Thread(target=get, args=(path,)) for path in ["/silent", "/slow"] * 4]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert sorted(texts) == ["You said: Hi"] * 4 + ["timeout"] * 4


# ---------------------------------------------------------------- fork, spawn, the end

def asked(vllm: VLLMProvider) -> Any:
    """Ask from a worker of a pool; the provider came there by pickle."""
    return vllm.chat_completion(**ASK).text, os.getpid()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_provider_goes_to_the_workers_of_a_pool(method: str) -> None:
    with EchoServer() as server, VLLMProvider(server.url, timeout=(5, 20), headers={"X-Team": "search"}) as vllm:
        assert asked(vllm)[0] == "You said: Hi"  # there is a connection to be shared by mistake
        program = ("import json, multiprocessing, sys; sys.path.insert(0, %r); import test_processes as t\n"
                   "if __name__ == '__main__':\n"
                   "    from vllm_bridge import VLLMProvider\n"
                   "    vllm = VLLMProvider(sys.argv[1], headers={'X-Team': 'search'}); t.asked(vllm)\n"
                   "    with multiprocessing.get_context(%r).Pool(2) as pool:\n"
                   "        print(json.dumps(pool.map(t.asked, [vllm] * 8)))\n" % (str(ROOT / "tests"), method))
        found = run(program, server.url)
        assert [text for text, _ in found] == ["You said: Hi"] * 8
        teams = [request.headers.get("x-team") for request in server.requests]
        assert teams[-9:] == ["search"] * 9


def test_a_provider_is_pickled_with_its_options() -> None:
    with EchoServer() as server, VLLMProvider(server.url, timeout=(3, 7), max_retries=1) as vllm:
        other = pickle.loads(pickle.dumps(vllm.with_options(deadline=9)))
        with other:
            assert asked(other)[0] == "You said: Hi"
            assert repr(other) == repr(vllm)


def test_a_child_that_drops_an_inherited_stream_leaves_the_parents_alone(tmp_path: Path) -> None:
    program = '''
import json, os, sys
from vllm_bridge import VLLMProvider
vllm = VLLMProvider(sys.argv[1])
stream = vllm.chat_completion_stream(model="echo", messages=[{"role": "user", "content": "Hi"}])
first = next(stream).text
child = os.fork()
if not child:
    stream.close()
    del stream, vllm
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
open(sys.argv[2], "w").close()
print(json.dumps([first] + [chunk.text for chunk in stream]))
'''
    mark = tmp_path / "the child has ended"
    steps: List[Any] = ["request", SSE_HEAD + event(delta("a")), ("until", mark.exists),
                        event(delta("b", "stop")) + event("[DONE]") + LAST_CHUNK]
    with Scripted(steps) as server:
        assert run(program, server.url, str(mark)) == ["a", "b"]
        assert server.connections == 1


def test_threads_of_a_forked_child_do_not_use_the_parents_connections() -> None:
    program = '''
import json, os, sys, threading
from vllm_bridge import VLLMProvider
ASK = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]}
vllm = VLLMProvider(sys.argv[1])
def ask(found):
    found.append(vllm.chat_completion(**ASK).text)
found = []
ask(found)
threads = [threading.Thread(target=ask, args=(found,)) for _ in range(3)]
[t.start() for t in threads]; [t.join() for t in threads]
read, write = os.pipe()
child = os.fork()
if not child:
    mine = []
    threads = [threading.Thread(target=ask, args=(mine,)) for _ in range(4)]
    [t.start() for t in threads]; [t.join() for t in threads]
    os.write(write, json.dumps(mine).encode()); os._exit(0)
for _ in range(20):
    ask(found)
os.close(write)
theirs = json.loads(os.read(read, 65536))
os.waitpid(child, 0)
ask(found)
print(json.dumps([found, theirs]))
'''
    with EchoServer() as server:
        found, theirs = run(program, server.url)
    assert found == ["You said: Hi"] * 25 and theirs == ["You said: Hi"] * 4


def test_a_last_call_while_the_program_ends() -> None:
    """Python 3.12 starts no thread any more then."""
    program = '''
import atexit, json, sys
from vllm_bridge import VLLMProvider
vllm = VLLMProvider(sys.argv[1])
@atexit.register
def last():
    ask = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]}
    limited = vllm.with_options(deadline=20)
    text = limited.chat_completion(**ASK).text
    streamed = "".join(chunk.text for chunk in limited.chat_completion_stream(**ASK))
    print(json.dumps([text, streamed]))
ASK = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]}
'''
    with EchoServer() as server:
        assert run(program, server.url) == ["You said: Hi"] * 2


def test_a_limit_holds_while_a_timer_ticks() -> None:
    program = '''
import json, signal, sys, time
from vllm_bridge import APITimeoutError, VLLMProvider
ticks = []
signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
vllm = VLLMProvider(sys.argv[1], timeout=(1, 0.5), max_retries=0)
ASK = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]}
begun = VLLMProvider(sys.argv[2]).with_options(stream_idle_timeout=0.5)
found = []
for call in (lambda: vllm.chat_completion(**ASK), lambda: list(vllm.chat_completion_stream(**ASK)),
             lambda: list(begun.chat_completion_stream(**ASK))):
    began = time.monotonic()
    try:
        call()
    except APITimeoutError:
        found.append(time.monotonic() - began)
signal.setitimer(signal.ITIMER_REAL, 0)
print(json.dumps([found, len(ticks)]))
'''
    with Scripted(SILENT) as silent, Scripted(STARTED) as midway:
        seconds, ticks = run(program, silent.url, midway.url)
    assert len(seconds) == 3 and all(0.4 < one < 20 for one in seconds)
    assert ticks >= 10
