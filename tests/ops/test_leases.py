"""Leases, alone and raced by real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.db import connection, transaction

from ops_app import clock, leases
from ops_app.models import Lease
from tests.ops.processes import ROOT, environment

TTL = timedelta(seconds=30)
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.django_db
def test_t3_a_lease_is_taken_by_one_holder_only_until_the_database_clock_says_it_is_over() -> None:
    with clock.simulated(START) as sim:
        first = leases.acquire("job", holder="a", ttl=TTL)
        assert first is not None
        assert leases.acquire("job", holder="b", ttl=TTL) is None
        assert leases.acquire("job", holder="a", ttl=TTL) is None  # a restarted namesake is another process
        sim.advance(TTL)
        second = leases.acquire("job", holder="b", ttl=TTL)
        assert second is not None
        assert second.token == first.token + 1


@pytest.mark.django_db
def test_t3_taking_a_lease_that_is_there_is_one_look_and_one_update(django_assert_num_queries) -> None:
    lease = leases.acquire("job", holder="a", ttl=TTL)
    assert lease is not None
    leases.release(lease)
    with django_assert_num_queries(2):
        assert leases.acquire("job", holder="b", ttl=TTL) is not None
    with django_assert_num_queries(2):
        assert leases.acquire("job", holder="c", ttl=TTL) is None


@pytest.mark.django_db
def test_t4_renew_release_and_held_of_a_lost_lease_change_nothing() -> None:
    with clock.simulated(START) as sim:
        lost = leases.acquire("job", holder="a", ttl=TTL)
        assert lost is not None
        sim.advance(TTL)
        owner = leases.acquire("job", holder="b", ttl=TTL)
        assert owner is not None
        before = Lease.objects.values().get()
        assert leases.renew(lost) is False
        assert leases.release(lost) is False
        with pytest.raises(leases.LeaseLost, match="token 1"), transaction.atomic():
            leases.held(lost)
        with pytest.raises(leases.LeaseLost, match="job"):
            leases.keep(lost)
        assert Lease.objects.values().get() == before
        with transaction.atomic():
            assert leases.held(owner)


@pytest.mark.django_db
def test_b1_tokens_only_grow_also_after_a_release() -> None:
    tokens = []
    for _ in range(4):
        lease = leases.acquire("bot:main", holder="a", ttl=TTL)
        assert lease is not None
        tokens.append(lease.token)
        leases.release(lease)
    assert tokens == [1, 2, 3, 4]


@pytest.mark.django_db
def test_b2_a_lapsed_lease_is_not_renewed_even_if_nobody_took_it() -> None:
    with clock.simulated(START) as sim:
        lease = leases.acquire("job", holder="a", ttl=TTL)
        assert lease is not None
        sim.advance(TTL - timedelta(milliseconds=1))
        assert leases.renew(lease)
        sim.advance(TTL)
        assert not leases.renew(lease)
        again = leases.acquire("job", holder="a", ttl=TTL)
        assert again is not None
        assert again.token > lease.token


@pytest.mark.django_db
def test_b3_the_local_deadline_counts_from_before_the_renewal(monkeypatch: pytest.MonkeyPatch) -> None:
    with clock.simulated(START) as sim:
        lease = leases.acquire("job", holder="a", ttl=TTL)
        assert lease is not None
        assert lease.locally_valid(margin=TTL - timedelta(seconds=1))
        assert not lease.locally_valid(margin=TTL)
        slow_database = clock.database_now
        sim.advance(timedelta(seconds=20))

        def slow() -> object:
            monkeypatch.setattr(clock, "database_now", slow_database)
            sim.advance(timedelta(seconds=5))  # the renewal takes this long
            return slow_database()

        monkeypatch.setattr(clock, "database_now", slow)
        assert leases.renew(lease)
        assert not lease.locally_valid(margin=TTL - timedelta(seconds=5))
        assert lease.locally_valid(margin=TTL - timedelta(seconds=6))


def test_b3_the_local_deadline_uses_the_clock_that_goes_on_while_the_host_sleeps() -> None:
    import time

    if hasattr(time, "CLOCK_BOOTTIME"):
        assert abs(clock.boot_seconds() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 5


@pytest.mark.django_db
def test_keep_renews_only_when_a_third_of_the_lease_has_passed(django_assert_num_queries) -> None:
    with clock.simulated(START) as sim:
        lease = leases.acquire("job", holder="a", ttl=TTL)
        assert lease is not None
        with django_assert_num_queries(0):
            leases.keep(lease)
        sim.advance(timedelta(seconds=11))
        with django_assert_num_queries(1):
            leases.keep(lease)
        assert lease.locally_valid(margin=timedelta(seconds=29))


@pytest.mark.django_db
def test_holding_gives_the_lease_back_also_after_an_error() -> None:
    def fail() -> None:
        with leases.holding("job", ttl=TTL):
            with pytest.raises(leases.LeaseBusy, match="job"), leases.holding("job", ttl=TTL):
                pass
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert leases.acquire("job", holder="next", ttl=TTL) is not None


@pytest.mark.django_db(transaction=True)
def test_held_outside_of_a_transaction_is_refused() -> None:
    lease = leases.acquire("job", holder="a", ttl=TTL)
    assert lease is not None
    with pytest.raises(RuntimeError, match="atomic"):
        leases.held(lease)


@pytest.mark.django_db
def test_a_lease_without_a_holder_or_time_is_refused() -> None:
    with pytest.raises(ValueError, match="give a name"):
        leases.acquire("job", holder="", ttl=TTL)
    with pytest.raises(ValueError, match="positive time"):
        leases.acquire("job", holder="a", ttl=timedelta(0))


def test_holder_names_are_unique_and_fit_the_column() -> None:
    names = {leases.holder_name("ingest") for _ in range(100)}
    assert len(names) == 100
    assert all(len(name) <= 120 for name in names)


def test_a_holder_is_known_to_be_dead_only_where_its_process_number_means_something(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        living = leases.holder_name("bot").replace(f":{os.getpid()}:", f":{other.pid}:")
        assert not leases.died_here(living)
        other.kill()
        other.wait()
    assert leases.died_here(living)
    assert not leases.died_here("bot")
    assert not leases.died_here("")
    # Another host of the same name, or this one before its last start, has other processes.
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(leases, "BOOT_ID", tmp_path / "boot_id")
        (tmp_path / "boot_id").write_text("00000000-0000-4000-8000-000000000000\n")
        assert not leases.died_here(living)
    # A container of the same host name counts its processes itself.
    monkeypatch.setattr(leases, "HOST_NAMESPACE", 1)
    assert not leases.died_here(living)


RACE = """
import os, sys; sys.path.insert(0, {root!r}); os.environ["DJANGO_SETTINGS_MODULE"] = "tradingsite.settings"
import django; django.setup()
from datetime import timedelta
from ops_app import clock, leases
end = clock.monotonic() + 4
while clock.monotonic() < end:
    lease = leases.acquire("race", holder=leases.holder_name("racer"), ttl=timedelta(seconds=60))
    if lease is not None:
        # O_EXCL: two holders at the same time would be seen here, whatever the database says.
        descriptor = os.open({mark!r}, os.O_CREAT | os.O_EXCL)
        print(lease.token, flush=True)
        os.close(descriptor); os.unlink({mark!r})
        assert leases.release(lease)
"""


def race(environ: dict[str, str], mark: Path) -> None:
    code = RACE.format(root=str(ROOT), mark=str(mark))
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for _ in range(2)
    ]  # fmt: skip
    tokens = []
    for racer in racers:
        output, errors = racer.communicate(timeout=240)
        assert racer.returncode == 0, errors
        tokens.append([int(word) for word in output.split()])
    assert all(tokens), "both must have had it, else nothing was raced"
    together = sorted(tokens[0] + tokens[1])
    assert together == list(range(1, len(together) + 1))
    assert all(own == sorted(own) for own in tokens)


@pytest.mark.slow
def test_t2_t3_two_real_processes_never_hold_a_lease_together_and_no_token_is_given_twice(
    data_dir: Path, tmp_path: Path
) -> None:
    race(environment(data_dir), tmp_path / "held")


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_t2_t3_the_same_race_on_postgresql(tmp_path: Path) -> None:
    server = connection.settings_dict
    login = f"{server['USER']}:{server['PASSWORD']}@{server['HOST']}:{server['PORT']}"
    race(environment(tmp_path, DATABASE_URL=f"postgres://{login}/{server['NAME']}"), tmp_path / "held")


@pytest.mark.django_db(transaction=True)
@pytest.mark.postgres
def test_held_keeps_a_takeover_waiting_until_the_transaction_ends() -> None:
    """On PostgreSQL the row is locked; SQLite has one writer anyway."""
    import threading

    lease = leases.acquire("job", holder="a", ttl=timedelta(seconds=3))
    assert lease is not None
    got: list[leases.LeaseToken | None] = []

    def take() -> None:
        clock.sleep(3.2)
        got.append(leases.acquire("job", holder="b", ttl=TTL))
        connection.close()

    thread = threading.Thread(target=take)
    thread.start()
    with transaction.atomic():
        assert leases.held(lease)
        clock.sleep(4.0)
        assert got == []
    thread.join()
    assert got[0] is not None
    assert got[0].token == lease.token + 1


FOLLOW = """
import os, sys; sys.path.insert(0, {root!r}); os.environ["DJANGO_SETTINGS_MODULE"] = "tradingsite.settings"
import django; django.setup()
from datetime import timedelta
from ops_app import clock, leases
if os.fork() == 0:
    leases.acquire("job", holder="a", ttl=timedelta(seconds=6))
    os.kill(os.getpid(), 9)
os.wait()
print(leases.acquire("job", holder="b", ttl=timedelta(seconds=3)))
while (lease := leases.acquire("job", holder="b", ttl=timedelta(seconds=3))) is None:
    clock.sleep(0.05)
print(lease.token)
"""


@pytest.mark.slow
def test_t9_a_killed_holder_is_followed_when_its_lease_runs_out_and_not_before(data_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FOLLOW.format(root=str(ROOT))],
        env=environment(data_dir), check=True, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.stdout.split() == ["None", "2"]
