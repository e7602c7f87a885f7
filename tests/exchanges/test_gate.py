"""When a venue may be asked: budget, breaker, pauses and bans, on a clock that is set by hand."""

from __future__ import annotations

import pytest

from exchanges.ccxt_gate import (
    OPEN_CAP_MS,
    Ban,
    Gate,
    GateClosedError,
    GateState,
    TokenBucket,
    Trouble,
    reset_at_ms,
)
from exchanges.ccxt_outcomes import BAN_MS

NOW = 1_767_225_600_000


def refused_until(gate: Gate, now: int, **more: bool) -> int:
    with pytest.raises(GateClosedError) as closed:
        gate.admit(now, **more)
    return closed.value.retry_at_ms


def fail(gate: Gate, now: int, trouble: Trouble = Trouble.SILENCE) -> None:
    gate.admit(now)
    gate.failed(now, trouble, "why")


def test_f21_three_silences_in_a_row_open_the_breaker_and_one_probe_closes_it() -> None:
    gate = Gate("account")
    for _ in range(2):
        fail(gate, NOW)
    gate.admit(NOW)
    gate.answered()  # in a row: two do not count on
    for _ in range(3):
        fail(gate, NOW)
    assert gate.state is GateState.OPEN
    retry_at = refused_until(gate, NOW)
    assert NOW + 4_500 <= retry_at <= NOW + 5_500
    assert gate.admit(retry_at) == 0
    assert refused_until(gate, retry_at) > retry_at  # one probe at a time
    gate.answered()
    assert gate.state is GateState.CLOSED
    assert gate.admit(retry_at) == 0


def test_f21_a_storm_of_reconnects_is_spread_grows_and_has_a_cap() -> None:
    waits = []
    gate, now = Gate("account"), NOW
    for _ in range(2):
        fail(gate, now)
    for _ in range(12):
        fail(gate, now)
        waits.append(gate.retry_at_ms - now)
        now = gate.retry_at_ms
    assert waits[0] < waits[1] < waits[2]
    assert OPEN_CAP_MS * 0.9 <= waits[-1] <= OPEN_CAP_MS * 1.1
    assert len({wait for wait in waits if wait > OPEN_CAP_MS * 0.9}) > 3
    other = Gate("data")
    for _ in range(3):
        fail(other, NOW)
    assert other.retry_at_ms - NOW != waits[0]


def test_f21_late_answers_neither_open_nor_close_a_gate_behind_the_probes_back() -> None:
    gate = Gate("account")
    for _ in range(3):
        fail(gate, NOW)
    opened_until = gate.retry_at_ms
    gate.answered()
    gate.failed(NOW, Trouble.SILENCE, "an older request")
    assert (gate.state, gate.retry_at_ms) == (GateState.OPEN, opened_until)


def test_f26_maintenance_sends_nothing_and_asks_once_a_minute() -> None:
    gate = Gate("account")
    fail(gate, NOW, Trouble.MAINTENANCE)
    sent = 0
    for second in range(1, 301):
        try:
            gate.admit(NOW + second * 1_000)
        except GateClosedError:
            continue
        sent += 1
        gate.failed(NOW + second * 1_000, Trouble.MAINTENANCE, "still")
    assert sent == 5
    gate.admit(NOW + 361_000)
    gate.answered()
    assert gate.state is GateState.CLOSED


def test_f06_a_rate_limit_pauses_its_class_until_the_reset_and_halves_its_pace() -> None:
    ban = Ban()
    data = Gate("data", ban=ban, bucket=TokenBucket(10))
    account = Gate("account", ban=ban)
    data.admit(NOW)
    data.failed(NOW, Trouble.RATE_LIMIT, "10006", retry_at_ms=NOW + 3_000)
    assert refused_until(data, NOW + 2_999) == NOW + 3_000
    assert account.admit(NOW) == 0
    assert data.admit(NOW + 3_000) == 0
    waits = [data.admit(NOW + 3_000) for _ in range(9)]
    assert waits[-1] - waits[-2] == pytest.approx(200, abs=1)  # 5 a second instead of 10


def test_f06_cancels_and_stops_have_tokens_that_entries_cannot_use_up() -> None:
    bucket = TokenBucket(8)
    entries = [bucket.reserve(NOW) for _ in range(7)]
    assert entries[:6] == [0] * 6
    assert entries[6] > 0
    assert bucket.reserve(NOW, urgent=True) == 0


def test_f06_the_budget_never_lets_more_through_than_its_pace_allows() -> None:
    bucket, now, sent = TokenBucket(8), NOW, []
    for _ in range(200):
        wait = bucket.reserve(now)
        now += wait
        sent.append(now)
    for start in sent:
        assert sum(start <= at < start + 1_000 for at in sent) <= 2 * 8  # a burst of one second's worth, then the pace
    assert (sent[-1] - sent[0]) / 1_000 >= (200 - 8) / 8 - 1


def test_f06_a_budget_that_is_used_up_for_long_refuses_instead_of_queueing() -> None:
    bucket = TokenBucket(1)
    for _ in range(5):
        bucket.reserve(NOW)
    with pytest.raises(GateClosedError, match="budget"):
        bucket.reserve(NOW)


def test_f39_a_ban_stops_every_class_for_ten_minutes_without_a_probe() -> None:
    ban = Ban()
    data, account = Gate("data", ban=ban), Gate("account", ban=ban)
    data.admit(NOW)
    data.failed(NOW, Trouble.BAN, "403")
    for gate in (data, account):
        assert refused_until(gate, NOW + BAN_MS - 1, urgent=True) == NOW + BAN_MS
        assert gate.admit(NOW + BAN_MS) == 0


def test_f39_a_refused_key_stops_the_account_and_leaves_the_data() -> None:
    ban = Ban()
    data, account = Gate("data", ban=ban), Gate("account", ban=ban)
    account.admit(NOW)
    account.failed(NOW, Trouble.KEY, "10003")
    assert refused_until(account, NOW + 599_999) == NOW + BAN_MS
    assert data.admit(NOW) == 0


@pytest.mark.parametrize(
    "headers, expected",
    [
        ({"X-Bapi-Limit-Reset-Timestamp": str(NOW + 2_000)}, NOW + 2_500),
        ({"Retry-After": "4"}, NOW + 4_000),
        ({"retry-after": "4", "x-bapi-limit-reset-timestamp": str(NOW + 1_000)}, NOW + 4_000),
        ({"Retry-After": "86400"}, NOW + 60_000),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({}, None),
    ],
)
def test_f06_the_reset_is_read_from_the_header_and_put_into_our_time(
    headers: dict[str, str], expected: int | None
) -> None:
    assert reset_at_ms(headers, now_ms=NOW, offset_ms=500) == expected
