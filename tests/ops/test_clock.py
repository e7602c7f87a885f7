"""The one clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.core.management.base import CommandError
from hypothesis import given
from hypothesis import strategies as st

from ops_app import clock, heartbeats, market_clock
from ops_app.models import Heartbeat, MarketClock

START = datetime(2026, 1, 1, tzinfo=UTC)
moments = st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2030, 1, 1), timezones=st.just(UTC))
speeds = st.floats(min_value=1, max_value=100_000)


@given(start=moments, real=moments, step=st.timedeltas(timedelta(0), timedelta(days=30)), speed=speeds)
def test_market_time_grows_with_real_time_times_the_speed(
    start: datetime, real: datetime, step: timedelta, speed: float
) -> None:
    def at(moment: datetime) -> datetime:
        return clock.market_time(real=moment, market_start=start, real_start=real, speed=speed)

    assert at(real) == start
    grown = (at(real + step) - start).total_seconds()
    assert grown == pytest.approx(step.total_seconds() * speed, rel=1e-9, abs=1e-5)


@given(start=moments, real=moments, market=moments, speed=speeds)
def test_real_time_is_the_inverse_of_market_time(
    start: datetime, real: datetime, market: datetime, speed: float
) -> None:
    there = clock.real_time(market=market, market_start=start, real_start=real, speed=speed)
    back = clock.market_time(real=there, market_start=start, real_start=real, speed=speed)
    assert abs((back - market).total_seconds()) <= speed * 1e-6 + 1e-6


@pytest.mark.django_db
def test_without_a_row_market_time_is_real_time() -> None:
    assert clock.market_clock() is None
    assert clock.speed() == 1
    assert abs((clock.market_now() - clock.real_now()).total_seconds()) < 1


@pytest.mark.django_db
def test_the_row_is_read_once_and_again_when_asked(django_assert_num_queries) -> None:
    real = clock.real_now()
    MarketClock.objects.create(market="simulated", market_start=START, real_start=real, speed=60)
    with django_assert_num_queries(1):
        first = clock.market_now()
        clock.market_now_ms()
    assert START <= first < START + timedelta(hours=1)
    MarketClock.objects.update(market_start=START + timedelta(days=9))
    assert clock.market_now() < START + timedelta(days=1)
    clock.refresh()
    assert clock.market_now() >= START + timedelta(days=9)


@pytest.mark.django_db
def test_a_simulated_clock_replaces_every_time_and_is_undone() -> None:
    with clock.simulated(START) as sim:
        assert {clock.market_now(), clock.real_now(), clock.database_time()} == {START}
        before = clock.monotonic()
        clock.sleep(5)
        assert clock.monotonic() - before == 5
        sim.advance(timedelta(hours=1))
        assert clock.market_now() == START + timedelta(hours=1, seconds=5)
        Heartbeat.objects.create(name="x", kind="test", beat_at=clock.database_now())
        assert Heartbeat.objects.get().beat_at == clock.market_now()
        assert not Heartbeat.objects.filter(beat_at__lt=clock.database_now() - timedelta(seconds=1)).exists()
        with pytest.raises(ValueError, match="forward"):
            sim.advance(timedelta(seconds=-1))
    assert clock.real_now() > START + timedelta(days=30)


def test_a_naive_start_is_refused() -> None:
    with pytest.raises(ValueError, match="aware"), clock.simulated(START.replace(tzinfo=None)):
        pass


@pytest.mark.django_db
def test_database_time_is_near_real_time_on_one_host() -> None:
    assert abs((clock.database_time() - clock.real_now()).total_seconds()) < 5


@pytest.mark.django_db
def test_setup_starts_a_simulated_clock_at_the_last_full_hour(settings) -> None:
    settings.SIM_SPEED = 60.0
    with clock.simulated(START + timedelta(hours=3, minutes=20)):
        assert "03:00" in market_clock.ensure()
        assert market_clock.ensure() == ""
    row = MarketClock.objects.get()
    assert (row.market_start, row.speed, row.market) == (START + timedelta(hours=3), 60, "simulated")


@pytest.mark.django_db
def test_another_speed_does_not_move_market_time(settings) -> None:
    with clock.simulated(START) as sim:
        settings.SIM_SPEED = 60.0
        market_clock.ensure()
        sim.advance(timedelta(minutes=10))
        settings.SIM_SPEED = 3600.0
        assert "3600" in market_clock.ensure()
        row = MarketClock.objects.get()
        assert (row.market_start, row.real_start) == (START + timedelta(hours=10), clock.real_now())


@pytest.mark.django_db
def test_the_speed_is_not_changed_under_running_processes(settings) -> None:
    with clock.simulated(START) as sim:
        settings.SIM_SPEED = 60.0
        market_clock.ensure()
        heartbeats.beat("bot:main", "bot", 20)
        settings.SIM_SPEED = 3600.0
        with pytest.raises(CommandError, match=r"while bot:main runs"):
            market_clock.ensure()
        sim.advance(timedelta(seconds=21))
        assert "3600" in market_clock.ensure()


@pytest.mark.django_db
@pytest.mark.parametrize("change", [{"EXCHANGE_MARKET": "binance_um", "EXCHANGE": "replay"}, {"SIM_SEED": 8}])
def test_a_clock_of_another_market_is_refused_with_the_fix(settings, change: dict[str, object]) -> None:
    market_clock.ensure()
    for name, value in change.items():
        setattr(settings, name, value)
    with pytest.raises(CommandError, match="another DATA_DIR"):
        market_clock.ensure()


@pytest.mark.django_db
def test_a_replay_starts_at_its_date_and_a_wrong_date_is_named(settings) -> None:
    settings.EXCHANGE, settings.EXCHANGE_MARKET, settings.REPLAY_FROM = "replay", "binance_um", "2025-06-01"
    market_clock.ensure()
    assert MarketClock.objects.get().market_start == datetime(2025, 6, 1, tzinfo=UTC)
    MarketClock.objects.all().delete()
    settings.REPLAY_FROM = "2025-06-31"
    with pytest.raises(CommandError, match=r"REPLAY_FROM='2025-06-31'"):
        market_clock.ensure()


@pytest.mark.django_db
def test_another_start_of_a_replay_needs_another_data_folder(settings) -> None:
    settings.EXCHANGE, settings.EXCHANGE_MARKET, settings.REPLAY_FROM = "replay", "binance_um", "2025-06-01"
    market_clock.ensure()
    settings.REPLAY_FROM = "2025-03-01"
    with pytest.raises(CommandError, match=r"replay: from=2025-06-01.*from=2025-03-01.*another DATA_DIR"):
        market_clock.ensure()


@pytest.mark.django_db
def test_paper_trading_has_no_row(settings) -> None:
    settings.EXCHANGE, settings.EXCHANGE_MARKET = "paper", "bybit"
    assert market_clock.ensure() == ""
    assert not MarketClock.objects.exists()
