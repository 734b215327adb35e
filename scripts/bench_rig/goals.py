"""The goals as data: a ratio of two medians of one run, or a figure, with what is aimed at and what is asked."""

from typing import Any, Dict, List, NamedTuple, Optional

Medians = Dict[str, Dict[str, float]]  # name → measure → median


class Goal(NamedTuple):
    """``of`` is (name, measure); with ``over`` the goal is their ratio, or ``difference``. ``most``: less is better."""

    what: str
    of: Any
    over: Any
    goal: float
    bar: float
    most: bool = True
    unit: str = "×"
    difference: bool = False


OURS = "ours"


def _library() -> List[Goal]:
    rows = []
    for what, measure, over, goal, bar in (
        ("small chat call, CPU, over requests' session.post().json()", "chat", "requests", 0.35, 0.6),
        ("small chat call, CPU, over the openai SDK", "chat", "openai", 0.15, 0.3),
        ("streamed chunk, CPU, over reading the bytes and json.loads", "chunk", "floor", 1.5, 2.0),
        ("streamed chunk, CPU, over the openai SDK", "chunk", "openai", 0.05, 0.1),
        ("32 × 1024 embeddings, CPU, over requests' session.post().json()", "embed", "requests", 0.2, 0.3),
        ("32 × 1024 embeddings, CPU, over the openai SDK with base64", "embed", "openai", 0.6, 1.0),
        ("first chunk after its bytes, over a bare http.client reader", "first_chunk", "http.client", 1.2, 1.5),
        ("import, CPU time, over import requests", "import_ms", "requests", 1.05, 1.15),
        ("import, memory, over import requests", "import_mb", "requests", 1.05, 1.15),
    ):
        rows.append(Goal(what, (OURS, measure), (over, measure), goal, bar))
    rows.append(Goal(
        "Responses stream converted, events per CPU second, over the chat stream parsed",
        (OURS, "chunk"), (OURS, "responses"), 0.5, 0.33, most=False,
    ))
    return rows


def _gateway() -> List[Goal]:
    rows = []
    for what, measure, over, goal, bar in (
        ("requests per core second at 16 connections, over vllm-router", "requests_per_core", "vllm-router", 1.2, 0.7),
        ("requests per core second at 16 connections, over Portkey", "requests_per_core", "portkey", 12, 5),
        ("requests per core second at 16 connections, over LiteLLM", "requests_per_core", "litellm", 80, 30),
        ("200-event streams per core second, burst, over vllm-router", "burst_per_core", "vllm-router", 4, 2.5),
        ("streams/s, a write per event, over vllm-router", "each_per_s", "vllm-router", 2, 1.5),
        ("500 paced streams, events/s, over direct", "paced_events_per_s", "direct", 0.99, 0.98),
        ("32 × 1024 embeddings/s, over nginx", "embed_per_s", "nginx", 0.5, 0.3),
    ):
        rows.append(Goal("gateway: " + what, (OURS, measure), (over, measure), goal, bar, most=False))
    rows.append(Goal(
        "gateway: first token of 500 paced streams, p50, beyond direct", (OURS, "paced_first_ms"),
        ("direct", "paced_first_ms"), 2, 5, unit="ms", difference=True,
    ))
    rows.append(Goal("gateway: idle memory", (OURS, "idle_mb"), None, 30, 40, unit="MB"))
    rows.append(Goal("gateway: cold start to the first answer", (OURS, "cold_start_s"), None, 0.4, 0.6, unit="s"))
    return rows


LIBRARY = _library()
GATEWAY = _gateway()


def figure(goal: Goal, medians: Medians) -> Optional[float]:
    """Return what was measured for a goal, ``None`` where a part of it was not."""
    value = medians.get(goal.of[0], {}).get(goal.of[1])
    if value is None or goal.over is None:
        return value
    under = medians.get(goal.over[0], {}).get(goal.over[1])
    if goal.difference:
        return None if under is None else value - under
    return value / under if under else None


def verdict(goal: Goal, value: Optional[float]) -> str:
    """Say whether a measured figure meets the goal, the bar, or neither."""
    if value is None:
        return "not measured"
    sign = 1 if goal.most else -1
    if sign * value <= sign * goal.goal:
        return "goal met"
    return "bar met" if sign * value <= sign * goal.bar else "missed"
