"""``python -m vllm_bridge.echo``: run the stand-in until Ctrl-C."""

import argparse
from threading import Event
from typing import Optional, Sequence

from .server import EchoServer


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Serve until interrupted; print the URL first. Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m vllm_bridge.echo", description="A stand-in for a vLLM server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--model", action="append", help="a model to serve; may be given several times (default: any)")
    parser.add_argument("--api-key", help="refuse requests without this key")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that each token takes")
    asked = parser.parse_args(argv)
    server = EchoServer(asked.port, asked.host, models=asked.model, api_key=asked.api_key, delay=asked.delay)
    try:
        server.start()
    except OSError as failure:
        parser.exit(1, "cannot listen on %s:%d: %s\n" % (asked.host, asked.port, failure.strerror))
    try:
        with server:
            print(server.url, flush=True)
            Event().wait()
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
