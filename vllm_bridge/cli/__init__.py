"""The command line: ``vllm-bridge COMMAND ...`` and ``python -m vllm_bridge COMMAND ...``."""

from .parser import main

__all__ = ["main"]
