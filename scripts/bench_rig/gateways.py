"""Rounds over the gateways: each started in front of the fake server, loaded, and ended again."""

import http.client
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from .clients import INPUTS, body, streaming
from .peers import portkey, python_of
from .processes import HERE, MEASURED, OTHERS, Failed, Upstream, cpu_seconds, end, environment, memory_mb, pinned, run

MODEL = {"ours": "vllm/bench"}  # what the gateway's clients call the model; the others have no prefix
PATIENCE = 90.0  # seconds until a gateway has to answer
NGINX = """
worker_processes 1; daemon off; pid %(folder)s/pid; error_log /dev/null crit;
events { worker_connections 4096; }
http {
  access_log off; client_body_temp_path %(folder)s/body; proxy_temp_path %(folder)s/proxy;
  fastcgi_temp_path %(folder)s/f; uwsgi_temp_path %(folder)s/u; scgi_temp_path %(folder)s/s;
  upstream vllm { server 127.0.0.1:%(upstream)d; keepalive 600; }
  server {
    listen 127.0.0.1:%(port)d; keepalive_requests 100000000;
    location / { proxy_pass http://vllm; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }
  }
}
"""
LITELLM = """
model_list:
  - model_name: bench
    litellm_params: {model: hosted_vllm/bench, api_base: "http://127.0.0.1:%(upstream)d/v1", api_key: x}
litellm_settings: {telemetry: false}
"""


class Start(NamedTuple):
    """How a gateway is started, and what its clients have to send along."""

    command: List[str]
    headers: Dict[str, str] = {}
    variables: Dict[str, str] = {}


def ours(port: int, upstream: int, folder: str) -> Start:
    command = [sys.executable, "-m", "vllm_bridge", "serve", "--port", str(port), "--upstream",
               "http://127.0.0.1:%d" % upstream]
    return Start(command)


def nginx(port: int, upstream: int, folder: str) -> Optional[Start]:
    program = shutil.which("nginx")
    if program is None:
        return None
    path = pathlib.Path(folder, "nginx.conf")
    path.write_text(NGINX % {"folder": folder, "port": port, "upstream": upstream})
    return Start([program, "-e", "/dev/null", "-p", folder, "-c", str(path)])


def vllm_router(port: int, upstream: int, folder: str) -> Optional[Start]:
    python = python_of("vllm-router")
    if python is None:
        return None
    return Start([
        str(python.parent / "vllm-router"), "--host", "127.0.0.1", "--port", str(port), "--worker-urls",
        "http://127.0.0.1:%d" % upstream, "--policy", "round_robin", "--log-level", "error", "--prometheus-port",
        str(free_port()), "--max-concurrent-requests", "4096",
    ])


def portkey_gateway(port: int, upstream: int, folder: str) -> Optional[Start]:
    where = portkey()
    if where is None:
        return None
    headers = {
        "x-portkey-provider": "openai", "x-portkey-custom-host": "http://127.0.0.1:%d/v1" % upstream,
        "Authorization": "Bearer x",
    }
    command = ["node", str(where / "build" / "start-server.js"), "--port=%d" % port, "--headless"]
    return Start(command, headers, {"NODE_ENV": "production", "PORT": str(port)})


def litellm(port: int, upstream: int, folder: str) -> Optional[Start]:
    python = python_of("litellm")
    if python is None:
        return None
    path = pathlib.Path(folder, "litellm.yaml")
    path.write_text(LITELLM % {"upstream": upstream})
    variables = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    command = [str(python.parent / "litellm"), "--config", str(path), "--host", "127.0.0.1", "--port", str(port),
               "--num_workers", "1"]
    return Start(command, {}, variables)


GATEWAYS: Dict[str, Callable[[int, int, str], Optional[Start]]] = {
    "ours": ours, "nginx": nginx, "vllm-router": vllm_router, "portkey": portkey_gateway, "litellm": litellm,
}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


class Gateway:
    """A running gateway; entering waits until it answers, and notes how long that took."""

    def __init__(self, name: str, upstream: int) -> None:
        self.name = name
        self.port = free_port()
        self.folder = tempfile.mkdtemp(prefix="bench-gateway-")
        start = GATEWAYS[name](self.port, upstream, self.folder)
        if start is None:
            shutil.rmtree(self.folder)
            raise LookupError(name)
        self.start = start

    def __enter__(self) -> "Gateway":
        before = time.monotonic()
        self.log = open(pathlib.Path(self.folder, "log"), "wb")
        self.process = subprocess.Popen(
            self.start.command, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL, start_new_session=True,
            env=environment(**self.start.variables), preexec_fn=pinned(MEASURED), cwd=self.folder,
        )
        try:
            self._await(before + PATIENCE)
        except BaseException:
            self.__exit__()
            raise
        self.cold_start = time.monotonic() - before
        time.sleep(0.3)
        self.idle_mb = memory_mb(self.process.pid)
        return self

    def __exit__(self, *exc_info: object) -> None:
        end(self.process)
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _await(self, deadline: float) -> None:
        wire = json.dumps(chat(self.name)).encode()
        told: Any = "nothing"
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            try:
                headers = {"Content-Type": "application/json", **self.start.headers}
                connection.request("POST", "/v1/chat/completions", wire, headers)
                reply = connection.getresponse()
                told = reply.status, reply.read()[:300]
                if reply.status == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            time.sleep(0.01)
        log = pathlib.Path(self.folder, "log").read_text(errors="replace")[-400:]
        raise Failed("%s does not answer: %s %s" % (self.name, told, log))


def chat(name: str, order: str = "") -> Dict[str, Any]:
    wire = streaming(order) if order else body()
    return {**wire, "model": MODEL.get(name, "bench")}


def tests(name: str, seconds: float, streams: int) -> Dict[str, Dict[str, Any]]:
    """Return the loads that one gateway gets; `streams` is how many paced ones run at once."""
    path = "/v1/chat/completions"
    pause = min(3.0, seconds * 1.5)
    return {
        "requests": {"path": path, "body": chat(name), "connections": 16, "seconds": seconds},
        "burst": {"path": path, "body": chat(name, "bench:burst:200"), "connections": 16, "seconds": seconds,
                  "stream": True},
        "each": {"path": path, "body": chat(name, "bench:each:200"), "connections": 16, "seconds": seconds,
                 "stream": True},
        "embed": {"path": "/v1/embeddings", "connections": 8, "seconds": seconds,
                  "body": {"model": MODEL.get(name, "bench"), "input": INPUTS, "encoding_format": "float"}},
        "paced": {"path": path, "body": chat(name, "bench:paced:60:50"), "connections": streams, "seconds": pause * 2,
                  "stream": True, "ramp": pause, "warm": 0.5},
    }


def rounds(count: int, seconds: float, note: Any, names: Optional[List[str]] = None) -> List[Dict[str, Any]]:
    """Load the fake server alone and then every gateway, once a round, in turned order every other round."""
    results: List[Dict[str, Any]] = []
    streams = 500 if seconds >= 0.5 else 50
    with Upstream() as address:
        upstream = int(address.rpartition(":")[2])
        wanted = [name for name in names or GATEWAYS if _is_there(name, upstream)]
        for number in range(count):
            results.append({**_direct(upstream, seconds, streams), "round": number})
            for name in wanted if number % 2 == 0 else wanted[::-1]:
                try:
                    results.append({**_loaded(name, upstream, seconds, streams), "round": number})
                except (Failed, subprocess.TimeoutExpired) as failure:
                    note("failed: %s" % failure)
            note("gateways: round %d of %d" % (number + 1, count))
    return results


def _is_there(name: str, upstream: int) -> bool:
    try:
        shutil.rmtree(Gateway(name, upstream).folder)
    except LookupError:
        return False
    return True


def _direct(upstream: int, seconds: float, streams: int) -> Dict[str, Any]:
    row: Dict[str, Any] = {"name": "direct"}
    for test, plan in tests("direct", seconds, streams).items():
        _note_load(row, test, _load({**plan, "port": upstream}), None)
    return row


def _loaded(name: str, upstream: int, seconds: float, streams: int) -> Dict[str, Any]:
    row: Dict[str, Any] = {"name": name}
    with Gateway(name, upstream) as gateway:
        row["cold_start_s"], row["idle_mb"] = gateway.cold_start, gateway.idle_mb
        for test, plan in tests(name, seconds, streams).items():
            plan = {**plan, "port": gateway.port, "headers": gateway.start.headers}
            before = cpu_seconds(gateway.process.pid)
            found = _load(plan)
            used = cpu_seconds(gateway.process.pid) - before
            # the whole run costs CPU time, and the warm part of it is not counted: scale to what was
            whole = plan["seconds"] + plan.get("warm", 0.2) + plan.get("ramp", 0.0) / 2
            _note_load(row, test, found, used * plan["seconds"] / whole)
        row["peak_mb"] = memory_mb(gateway.process.pid)
    return row


def _load(plan: Dict[str, Any]) -> Dict[str, Any]:
    result: Dict[str, Any] = json.loads(run([sys.executable, str(HERE / "load.py"), json.dumps(plan)], OTHERS, 120))
    return result


def _note_load(row: Dict[str, Any], test: str, found: Dict[str, Any], cpu: Optional[float]) -> None:
    if found["bad"]:
        row[test + "_why"] = "%d bad: %s" % (found["bad"], found["why"])
    row[test + "_per_s"] = found["per_second"]
    if test == "paced":
        row["paced_events_per_s"] = found["events_per_second"]
        if found["first_ms"] is not None:
            row["paced_first_ms"] = found["first_ms"]
    if cpu:
        row[test + "_per_core"] = found["done"] / cpu
