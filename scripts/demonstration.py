"""The steps of ./scripts/demo: start what is needed, show every operation through the gateway, stop it all."""

import argparse
import io
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import wave
from types import FrameType
from typing import Any, Callable, Iterator, List, Optional

from vllm_bridge import BridgeError, VLLMProvider
from vllm_bridge.echo import EchoServer

GATEWAY_STARTS_WITHIN = 20.0  # seconds
TOKEN_TIME = 0.03  # seconds that each token of the stand-in takes, so that streaming can be seen


class Gateway:
    """``vllm-bridge serve`` as a process of its own."""

    def __init__(self, upstream: str) -> None:
        command = [sys.executable, "-m", "vllm_bridge", "serve", "--port", str(free_port()), "--upstream", upstream]
        self.url = ""
        self.show_log = False
        self._said: List[str] = []
        self._ready = threading.Event()
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            universal_newlines=True, start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait(self) -> None:
        """Wait until it listens."""
        self._ready.wait(GATEWAY_STARTS_WITHIN)
        if not self.url:
            raise SystemExit("The gateway did not start:\n" + "".join(self._said))

    def stop(self) -> None:
        """Stop it and wait for its end."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(5)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if not self.url and " listens on " in line:
                self.url = line.split(" listens on ")[1].split()[0]
                self._ready.set()
            self._said.append(line)
            if self.show_log:
                print(line, end="", flush=True)
        self._ready.set()


def free_port() -> int:
    """Return 8080, or 0 for any other port if that one is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 8080))
        except OSError:
            return 0
    return 8080


class Show:
    """The operations, each with a heading and its answer in a few lines."""

    def __init__(self, vllm: VLLMProvider, model: str) -> None:
        self.vllm = vllm
        self.model = model
        self.shown = 0
        self.failed = 0

    def step(self, heading: str, lines: Callable[[], Iterator[str]]) -> None:
        """Show one operation; an error is an answer too."""
        print("\n%s" % heading, flush=True)
        try:
            for line in lines():
                say(line)
        except BridgeError as error:
            self.failed += 1
            say("did not work: %s" % error)
        else:
            self.shown += 1

    def chat(self) -> Iterator[str]:
        question = "What is the capital of France?"
        yield "> " + question
        started = time.perf_counter()
        reply = self.vllm.chat_completion(model=self.model, messages=user(question), max_tokens=100)
        took = time.perf_counter() - started
        yield text_of(reply.choices[0].message)
        if reply.usage:
            yield "(%d tokens in, %d out, %.0f ms)" % (
                reply.usage.prompt_tokens, reply.usage.completion_tokens, 1000 * took)

    def chat_stream(self) -> Iterator[str]:
        question = "Count the ways in which a token can travel to a terminal, one after another."
        yield "> " + question
        yield from self.told(lambda: self.vllm.chat_completion_stream(
            model=self.model, messages=user(question), max_tokens=100), lambda chunk: text_of(chunk.choices[0].delta))

    def responses(self) -> Iterator[str]:
        question = "Name a prime."
        yield "> " + question
        reply = self.vllm.responses(model=self.model, input=question)
        yield reply.output_text
        yield "(%s, %s)" % (reply.id, reply.status)

    def responses_stream(self) -> Iterator[str]:
        question = "Name a few more."
        yield "> " + question
        yield from self.told(lambda: self.vllm.responses_stream(model=self.model, input=question),
                             lambda event: event.delta if event.type == "response.output_text.delta" else "")

    def completion(self) -> Iterator[str]:
        prompt = "2, 3, 5, 7,"
        yield "> " + prompt
        yield self.vllm.text_completion(model=self.model, prompt=prompt, max_tokens=16).text

    def completion_stream(self) -> Iterator[str]:
        prompt = "a, b, c,"
        yield "> " + prompt
        yield from self.told(lambda: self.vllm.text_completion_stream(
            model=self.model, prompt=prompt, max_tokens=16), lambda chunk: chunk.text)

    def transcription(self) -> Iterator[str]:
        yield "> one second of a tone, as WAV"
        yield self.vllm.transcription(model=self.model, file=("tone.wav", tone(), "audio/wav")).text

    def transcription_stream(self) -> Iterator[str]:
        yield "> the same"
        yield from self.told(lambda: self.vllm.transcription_stream(
            model=self.model, file=("tone.wav", tone(), "audio/wav")), lambda event: event.delta)

    def told(self, start: Callable[[], Any], text: Callable[[Any], Optional[str]]) -> Iterator[str]:
        """Print the text of a stream's items as they come, then yield how many had some, and when."""
        started = time.perf_counter()
        first: Optional[float] = None
        count = 0
        print("    ", end="", flush=True)
        with start() as stream:
            for item in stream:
                piece = text(item)
                if piece:
                    first = first or time.perf_counter() - started
                    count += 1
                    print(piece.replace("\n", "\n    "), end="", flush=True)
        print(flush=True)
        yield "(%d pieces, the first after %.0f ms, the last after %.0f ms)" % (
            count, 1000 * (first or 0), 1000 * (time.perf_counter() - started))

    def embeddings(self) -> Iterator[str]:
        texts = ["a cat", "a kitten"]
        reply = self.vllm.embedding(model=self.model, input=texts)
        for text, row in zip(texts, reply.data):
            numbers = ", ".join("%.3f" % number for number in row.embedding[:4])
            yield '"%s"  ->  [%s, ...] %d numbers' % (text, numbers, len(row.embedding))

    def rerank(self) -> Iterator[str]:
        documents = ["Berlin is a city in Germany.", "The capital of France is Paris.", "Cats sleep a lot."]
        query = "capital of France"
        yield "> " + query
        for result in self.vllm.rerank(model=self.model, query=query, documents=documents).results:
            yield "%.3f  %s" % (result.relevance_score, documents[result.index])


def user(text: str) -> List[Any]:
    """Return the messages of a chat that begins with a text."""
    return [{"role": "user", "content": text}]


def text_of(message: Any) -> str:
    """Return what a model said, be it only its reasoning."""
    return message.content or message.reasoning or ""


def tone() -> bytes:
    """Return one second of 440 Hz as a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16000)
        swing = (int(9000 * math.sin(2 * math.pi * 440 * number / 16000)) for number in range(16000))
        sound.writeframes(b"".join(level.to_bytes(2, "little", signed=True) for level in swing))
    return file.getvalue()


def say(text: str) -> None:
    """Print a text, indented."""
    print(textwrap.indent(text.strip("\n"), "    "), flush=True)


def show_all(url: str, gateway: Gateway, real: bool, serve: bool) -> int:
    """Show every operation, and with `serve` leave the gateway up; return the exit code."""
    print("%s %s" % ("vLLM server         " if real else "Stand-in for vLLM   ", url))
    print("Gateway before it    %s" % gateway.url)
    vllm = VLLMProvider(gateway.url, max_retries=0)
    names: List[str] = []

    def models() -> Iterator[str]:
        names.extend(model.id for model in vllm.list_models().data)
        yield from names

    show = Show(vllm, "")
    show.step("GET /v1/models", models)
    if not names:
        return 1
    show.model = names[0]
    show.step("POST /v1/chat/completions", show.chat)
    show.step("POST /v1/chat/completions, streamed", show.chat_stream)
    show.step("POST /v1/responses", show.responses)
    show.step("POST /v1/responses, streamed", show.responses_stream)
    show.step("POST /v1/completions", show.completion)
    show.step("POST /v1/completions, streamed", show.completion_stream)
    show.step("POST /v1/embeddings", show.embeddings)
    show.step("POST /v1/rerank", show.rerank)
    show.step("POST /v1/audio/transcriptions", show.transcription)
    show.step("POST /v1/audio/transcriptions, streamed", show.transcription_stream)
    vllm.close()
    # A real chat server has no embeddings, and the other way round.
    failed = show.shown < 2 if real else show.failed > 0
    return stay(gateway, names[0]) if serve and not failed else int(failed)


def stay(gateway: Gateway, model: str) -> int:
    """Leave the gateway up until Ctrl-C."""
    body = json.dumps({"model": model, "messages": user("Hello")})
    python = os.path.relpath(sys.executable)
    try:
        print("\nThe gateway stays up; Ctrl-C stops it. From another terminal:\n")
        if shutil.which("curl"):
            print("    curl %s/v1/chat/completions -H 'Content-Type: application/json' -d '%s'" % (gateway.url, body))
        print("    %s -m vllm_bridge chat --base-url %s Hello\n" % (python, gateway.url), flush=True)
        gateway.show_log = True
        code = gateway.process.wait()
    except KeyboardInterrupt:
        return 0
    print("The gateway stopped by itself (exit code %d)." % code)
    return 1


def on_signal(number: int, frame: Optional[FrameType]) -> None:
    """Leave in order on SIGTERM and SIGHUP: everything that was started is stopped on the way out."""
    raise SystemExit(128 + number)


def main() -> int:
    """Show everything, stop everything."""
    parser = argparse.ArgumentParser(prog="./scripts/demo", description="Show vllm_bridge at work.")
    parser.add_argument("--serve", action="store_true", help="leave the gateway up until Ctrl-C")
    asked = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
    real = os.environ.get("VLLM_BASE_URL", "").strip()
    echo = None if real else EchoServer(delay=TOKEN_TIME).start()
    gateway = None
    try:
        url = real if echo is None else echo.url
        gateway = Gateway(url)
        gateway.wait()
        return show_all(url, gateway, bool(real), asked.serve)
    except KeyboardInterrupt:
        return 130
    finally:
        if gateway is not None:
            gateway.stop()
        if echo is not None:
            echo.stop()
        print("\nEverything that was started has been stopped.", flush=True)


if __name__ == "__main__":
    sys.exit(main())
