"""The numbers as Prometheus reads them."""

import re
from typing import Dict, Iterator

import pytest

from vllm_bridge.gateway.metrics import Metrics

LINE = re.compile(r'([a-z_]+)(\{[a-z_]+="(?:[^"\\\n]|\\[\\"n])*"(?:,[a-z_]+="(?:[^"\\\n]|\\[\\"n])*")*\})? (\S+)')


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    found = Metrics(2)
    yield found
    found.close()


def numbers(metrics: Metrics) -> Dict[str, float]:
    """Read the text by the grammar of the exposition format 0.0.4."""
    found = {}
    kinds = {}
    text = metrics.text().decode()
    assert text.endswith("\n")
    for line in text.split("\n")[:-1]:
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            match = LINE.fullmatch(line)
            assert match is not None, line
            family = re.sub("_(bucket|sum|count)$", "", match.group(1))
            assert family in kinds or match.group(1) in kinds
            assert match.group(1) + (match.group(2) or "") not in found
            found[match.group(1) + (match.group(2) or "")] = float(match.group(3))
    return found


def test_a_request(metrics: Metrics) -> None:
    metrics.state({"chat_completion": 1}, 0, 0)
    assert numbers(metrics)['vllm_bridge_requests_in_flight{operation="chat_completion"}'] == 1
    metrics.count("chat_completion", "m", 200, 0.3, 0.02, (11, 13), retries=1, fallbacks=2)
    metrics.state({"chat_completion": 0}, 0, 0)
    found = numbers(metrics)
    assert found['vllm_bridge_requests_in_flight{operation="chat_completion"}'] == 0
    assert found['vllm_bridge_requests_total{operation="chat_completion",model="m",status="200"}'] == 1
    assert found['vllm_bridge_tokens_total{operation="chat_completion",model="m",direction="prompt"}'] == 11
    assert found['vllm_bridge_tokens_total{operation="chat_completion",model="m",direction="completion"}'] == 13
    assert found['vllm_bridge_retries_total{operation="chat_completion"}'] == 1
    assert found['vllm_bridge_fallbacks_total{operation="chat_completion"}'] == 2
    first = 'vllm_bridge_first_token_seconds_%s{operation="chat_completion",model="m"%s}'
    assert found[first % ("bucket", ',le="0.01"')] == 0
    assert found[first % ("bucket", ',le="0.025"')] == 1
    assert found[first % ("bucket", ',le="+Inf"')] == found[first % ("count", "")] == 1
    assert found[first % ("sum", "")] == 0.02


def test_buckets_are_cumulative(metrics: Metrics) -> None:
    for seconds in (0.001, 0.3, 0.3, 100000):
        metrics.count("rerank", "m", 200, seconds)
    name = 'vllm_bridge_request_duration_seconds_bucket{operation="rerank",model="m",le="%s"}'
    found = numbers(metrics)
    assert [found[name % bound] for bound in ("0.005", "0.25", "0.5", "600", "+Inf")] == [1, 1, 3, 3, 4]
    assert not any("first_token" in line for line in found)


def test_workers_are_added_up(metrics: Metrics) -> None:
    metrics.count("embedding", "m", 200, 1)
    metrics.state({"embedding": 2}, 0, 0)
    metrics.claim(1)
    metrics.count("embedding", "m", 200, 1)
    metrics.state({"embedding": 3}, 0, 0)
    found = numbers(metrics)
    assert found['vllm_bridge_requests_total{operation="embedding",model="m",status="200"}'] == 2
    assert found['vllm_bridge_requests_in_flight{operation="embedding"}'] == 5


def test_names_that_nobody_serves_get_no_numbers_of_their_own(metrics: Metrics) -> None:
    for number in range(50):
        metrics.count("embedding", "invented-%d" % number, 404, 1)
    for number in range(500):
        metrics.count("embedding", "served-%d" % number, 200, 1)
    metrics.count("embedding", "served-1", 500, 1)
    metrics.count("list_models", None, 200, 1)
    found = numbers(metrics)
    requests = 'vllm_bridge_requests_total{operation="%s",model="%s",status="%d"}'
    assert found[requests % ("embedding", "other", 404)] == 50
    assert found[requests % ("embedding", "other", 200)] == 300
    assert found[requests % ("embedding", "served-1", 500)] == 1
    assert found[requests % ("list_models", "", 200)] == 1


def test_a_models_name_is_quoted(metrics: Metrics) -> None:
    metrics.count("embedding", 'a"\\\n\r\u2028\ud800} 1\nvllm_bridge_retries_total 9', 200, 1)
    assert "vllm_bridge_retries_total" not in numbers(metrics)


def test_cooled_servers_and_lost_lines(metrics: Metrics) -> None:
    metrics.state({}, 0, 0)
    assert "vllm_bridge_cooled_servers" not in numbers(metrics)
    for count in (2, 2, 1):
        metrics.state({}, count, count)
    assert numbers(metrics)["vllm_bridge_cooled_servers"] == 1
    assert numbers(metrics)["vllm_bridge_log_lines_dropped_total"] == 5
    metrics.state({}, 0, 0)
    assert numbers(metrics)["vllm_bridge_cooled_servers"] == 0


def test_a_server(metrics: Metrics) -> None:
    metrics.with_servers({"http://gpu:8000": 2})
    assert numbers(metrics)['vllm_bridge_server_requests_in_flight{server="http://gpu:8000"}'] == 2
    metrics.attempted("http://gpu:8000")
    metrics.attempted("http://gpu:8000")
    metrics.count_for("http://gpu:8000", 200, 0.02, 0.3, (11, 13, 7))
    metrics.changed("http://gpu:8000", "away", 2)
    metrics.with_servers({})
    found = numbers(metrics)
    assert found['vllm_bridge_server_requests_in_flight{server="http://gpu:8000"}'] == 0
    assert found['vllm_bridge_server_requests_total{server="http://gpu:8000",status="200"}'] == 1
    assert found['vllm_bridge_server_attempts_total{server="http://gpu:8000"}'] == 2
    assert found['vllm_bridge_server_changes_total{server="http://gpu:8000",change="away"}'] == 2
    assert found['vllm_bridge_server_delay_seconds_sum{server="http://gpu:8000"}'] == 0.02
    assert found['vllm_bridge_server_first_token_seconds_sum{server="http://gpu:8000"}'] == 0.3
    tokens = 'vllm_bridge_server_tokens_total{server="http://gpu:8000",direction="%s"}'
    assert [found[tokens % direction] for direction in ("prompt", "completion", "cached")] == [11, 13, 7]


def test_servers_that_come_and_go_do_not_fill_the_memory(metrics: Metrics) -> None:
    for number in range(250):
        metrics.attempted("http://10.0.0.%d:8000" % number)
    found = numbers(metrics)
    assert sum(name.startswith("vllm_bridge_server_attempts_total") for name in found) == 201
    assert found['vllm_bridge_server_attempts_total{server="other"}'] == 50
