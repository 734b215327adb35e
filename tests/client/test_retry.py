"""retry.py: which failures go out again, and after how long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_bridge import errors
from vllm_bridge.client.retry import CONNECTION_NOT_MADE, RetryPolicy, parse_retry_after

NOW = 784111777.0  # 1994-11-06 08:49:37 GMT, the example date of RFC 9110 §5.6.7


def policy(**changes):
    return RetryPolicy(**{"random": lambda: 0.5, **changes})


@pytest.mark.parametrize(
    "error, alone, with_other_key",
    [
        (errors.APIConnectionError("refused", code=CONNECTION_NOT_MADE), True, True),
        (errors.APITimeoutError("connect", code=CONNECTION_NOT_MADE), True, True),
        (errors.APITimeoutError("silence"), False, False),
        (errors.APIConnectionError("reset"), False, False),
        (errors.RateLimitError("busy", status_code=429), True, True),
        (errors.InternalServerError("gateway", status_code=502), True, True),
        (errors.InternalServerError("stopping", status_code=503), True, True),
        (errors.InternalServerError("still working", status_code=504), False, True),
        (errors.APIConnectionError("handshake", code="tls_error"), False, True),
        (errors.error_from_payload({"error": {"message": "full", "code": 503}}), True, True),  # inside a 200
        (errors.error_from_payload({"error": {"message": "bug", "code": 500}}), False, True),
        (errors.InternalServerError("bug", status_code=500), False, True),
        (errors.InternalServerError("no such thing", status_code=501), False, False),
        (errors.BadRequestError("no"), False, False),
        (errors.NotFoundError("no"), False, False),
        # A server cannot pass its error off as a connection that was never made.
        (errors.BadRequestError("no", code=CONNECTION_NOT_MADE), False, False),
        (errors.IncompleteStreamError("cut"), False, False),
        (errors.ResponseDecodeError("junk"), False, False),
        (errors.RequestCancelledError("stop"), False, False),
    ],
)
def test_what_is_retried(error, alone, with_other_key):
    assert policy().should_retry(error, attempt=0) is alone
    assert policy().should_retry(error, attempt=0, other_key_left=True) is with_other_key


def test_attempts_are_counted():
    error = errors.RateLimitError("busy")
    error.status_code = 429
    assert [policy(max_retries=2).should_retry(error, attempt=n) for n in range(4)] == [True, True, False, False]
    assert not policy(max_retries=0).should_retry(error, attempt=0)


def test_a_long_retry_after_is_not_waited_for(caplog):
    error = errors.RateLimitError("quota", status_code=429)
    caplog.set_level("INFO", "vllm_bridge")
    assert policy().should_retry(error, attempt=0, retry_after=60.0)
    assert not caplog.records
    assert not policy().should_retry(error, attempt=0, retry_after=3600.0)
    assert "asks to wait 3600 s" in caplog.text
    # Another key's server asked for nothing.
    assert policy().should_retry(error, attempt=0, retry_after=3600.0, other_key_left=True)


def test_backoff_doubles_up_to_the_maximum():
    # U(0.8, 1.2) at its middle is 1.
    assert [policy().delay(n) for n in range(6)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert policy().delay(10**9) == 5.0


@given(st.integers(0, 10**6), st.floats(0, 1, exclude_max=True), st.integers(0, 10**6), st.integers(0, 10**6))
def test_backoff_stays_in_its_bounds(n, luck, initial, most):
    delay = RetryPolicy(2, initial, most, random=lambda: luck).delay(n)
    assert 0 <= delay <= most / 1000
    if n == 0 and initial * 1.2 < most:
        assert initial * 0.8 / 1000 <= delay * (1 + 1e-9) and delay <= initial * 1.2 / 1000 * (1 + 1e-9)


def test_the_spread_reaches_both_sides():
    assert policy(random=lambda: 0.0).delay(0) == pytest.approx(0.4)
    assert policy(random=lambda: 0.999999).delay(0) == pytest.approx(0.6, abs=1e-5)


def test_retry_after_goes_before_backoff():
    assert policy().delay(0, 7.0) == 7.0
    assert policy().delay(0, 0.0) == 0.5  # "at once" would let all clients come back together
    assert policy().delay(0, 3600.0) == 60.0
    assert policy().delay(3, 7.0, other_key_left=True) == 0.0


@pytest.mark.parametrize(
    "value, expected",
    [
        ("120", 120.0),
        (" 1.5\t", 1.5),
        ("0", 0.0),
        ("Sun, 06 Nov 1994 08:49:47 GMT", 10.0),  # the three forms of RFC 9110 §5.6.7
        ("Sunday, 06-Nov-94 08:49:47 GMT", 10.0),
        ("Sun Nov  6 08:49:47 1994", 10.0),
        ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0),
        (None, None),
        ("", None),
        ("-5", None),
        ("nan", None),
        ("inf", None),
        ("1_0", None),
        ("\u0661", None),
        ("soon", None),
        ("Sun, 99 Zzz 9999 08:49:37 GMT", None),
        ("Sun, 06 Nov 999999999999999999 08:49:37 GMT", None),
    ],
)
def test_retry_after_is_read(value, expected):
    assert parse_retry_after(value, NOW) == expected


def test_retry_after_ms_is_the_finer_one():
    assert parse_retry_after("2", NOW, "1500") == 1.5
    assert parse_retry_after("2", NOW, "junk") == 2.0
    assert parse_retry_after(None, NOW, "250") == 0.25


@given(st.one_of(st.text(), st.from_regex(r"\A[A-Z][a-z]{2},? ?[0-9 :A-Za-z+-]{0,40}\Z")))
def test_no_retry_after_raises(value):
    wait = parse_retry_after(value, NOW)
    assert wait is None or wait >= 0
