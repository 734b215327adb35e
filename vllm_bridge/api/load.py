"""What a server says of its load in ``/metrics``."""

import re
from typing import Dict, Optional

__all__ = ["read"]

# vLLM 0.32: vllm:num_requests_running{engine="0",model_name="chat"} 3.0
_LINE = re.compile(r"^vllm:num_requests_(running|waiting)(?:\{[^\n]*\})? ([0-9.eE+]+)$", re.MULTILINE)


def read(text: str) -> Optional[Dict[str, int]]:
    """Return how many requests are ``running`` and ``queued``, of all engines; ``None`` where that is not said."""
    counts: Dict[str, int] = {}
    for what, number in _LINE.findall(text):
        name = "queued" if what == "waiting" else what
        try:
            counts[name] = counts.get(name, 0) + int(float(number))
        except (ValueError, OverflowError):
            return None
    return counts or None
