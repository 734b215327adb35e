#!/usr/bin/env python3
"""Run the gateway without an installed command: ``python scripts/gateway.py --upstream http://gpu:8000``."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vllm_bridge.gateway.run import main as serve  # noqa: E402
from vllm_bridge.gateway.settings import add_arguments  # noqa: E402


def main() -> int:
    """Read the flags and serve."""
    parser = argparse.ArgumentParser(description="One OpenAI-compatible address in front of vLLM servers.")
    add_arguments(parser)
    return serve(parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
