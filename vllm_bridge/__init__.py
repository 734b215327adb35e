"""vLLM servers from synchronous Python, with requests as the one dependency."""

__version__ = "0.1.0"
