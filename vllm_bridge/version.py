"""The version, and the name under which the bridge introduces itself to servers."""

__version__ = "0.1.0"

USER_AGENT = "vllm-bridge/" + __version__
