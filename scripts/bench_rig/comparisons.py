"""What is compared, as data: the ratio of two medians of one run, their difference, or a figure of ours alone."""

from typing import Dict, NamedTuple, Optional

Medians = Dict[str, Dict[str, float]]  # name → measure → median
OURS = "ours"


class Comparison(NamedTuple):
    """``measure`` of ours beside the peer ``over``; where that is empty, the figure itself in ``unit``.

    With ``difference`` it is what ours has beyond the peer's; with ``under`` the measure of ours that is divided by.
    """

    what: str
    measure: str
    over: str = ""
    unit: str = "×"
    difference: bool = False
    under: str = ""


LIBRARY = [Comparison(*row) for row in (
    ("small chat call, CPU, over requests' session.post().json()", "chat", "requests"),
    ("small chat call, CPU, over the openai SDK", "chat", "openai"),
    ("streamed chunk, CPU, over reading the bytes and json.loads", "chunk", "floor"),
    ("streamed chunk, CPU, over the openai SDK", "chunk", "openai"),
    ("32 × 1024 embeddings, CPU, over requests' session.post().json()", "embed", "requests"),
    ("32 × 1024 embeddings, CPU, over the openai SDK with base64", "embed", "openai"),
    ("first chunk after its bytes, over a bare http.client reader", "first_chunk", "http.client"),
    ("import, CPU time, over import requests", "import_ms", "requests"),
    ("import, memory, over import requests", "import_mb", "requests"),
)] + [Comparison("Responses stream converted, events per CPU second, over the chat stream parsed", "chunk", OURS,
                 under="responses")]
GATEWAY = [Comparison("gateway: " + what, measure, over) for what, measure, over in (
    ("requests per core second at 16 connections, over vllm-router", "requests_per_core", "vllm-router"),
    ("requests per core second at 16 connections, over Portkey", "requests_per_core", "portkey"),
    ("requests per core second at 16 connections, over LiteLLM", "requests_per_core", "litellm"),
    ("200-event streams per core second, burst, over vllm-router", "burst_per_core", "vllm-router"),
    ("200-event streams per core second, a write per event, over vllm-router", "each_per_core", "vllm-router"),
    ("200-event streams/s, a write per event, over vllm-router", "each_per_s", "vllm-router"),
    ("32 × 1024 embeddings per core second, over vllm-router", "embed_per_core", "vllm-router"),
    ("32 × 1024 embeddings/s, over nginx", "embed_per_s", "nginx"),
    ("500 paced streams, events/s, over direct", "paced_events_per_s", "direct"),
)] + [
    Comparison("gateway: first token of 500 paced streams, p50, beyond direct", "paced_first_ms", "direct", "ms", True),
    Comparison("gateway: idle memory", "idle_mb", unit="MB"),
    Comparison("gateway: cold start to the first answer", "cold_start_s", unit="s"),
]

BATCH = [
    Comparison("batch: lines per core second, over a script with openai.AsyncOpenAI", "lines_per_core", "openai"),
    Comparison("batch: lines per core second, over a script with aiohttp", "lines_per_core", "aiohttp"),
    Comparison("batch: memory at 100,000 lines", "peak_mb", unit="MB"),
    Comparison("batch: going on behind 1,000,000 answered lines", "resume_s", unit="s"),
]


def figure(comparison: Comparison, medians: Medians) -> Optional[float]:
    """Return what was measured, ``None`` where a part of it was not."""
    value = medians.get(OURS, {}).get(comparison.measure)
    if value is None or not comparison.over:
        return value
    beside = medians.get(comparison.over, {}).get(comparison.under or comparison.measure)
    if comparison.difference:
        return None if beside is None else value - beside
    return value / beside if beside else None
