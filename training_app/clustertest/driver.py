"""Starts clusters, asks for trainings, disturbs them, waits, and gathers what the rows say."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command

from coverage_app import market
from coverage_app.models import Symbol
from exchanges.simulated import SimulatedMarket
from ops_app import clock, heartbeats, market_clock
from ops_app.jobs import registered
from quant.timeframes import DAY_MS, floor_ms, timeframe_ms, to_ms
from training_app import registry, services
from training_app.choices import OPEN_STATES, RunState, RunTrigger
from training_app.clustertest import judge
from training_app.clustertest.chaos import BrokerChaos, discard_messages
from training_app.clustertest.hosts import Host, Network, hosts
from training_app.models import TrainingRun, TrainingScope

LOOK_SECONDS = 0.25
HISTORY_DAYS = 180
"""Enough for a real training of nearly every symbol: one in 200 has too few samples, which is an end, too."""
PATIENCE_PER_RUN, LEAST_PATIENCE = 20.0, 240.0
BATCHES = 8
"""With chaos, the trainings are asked for in this many parts, so that messages are needed all the time."""
CUT_LEASES, MOST_CUTS = 3.0, 3
LOST_LINE = re.compile(r"^run \d+ was lost", re.MULTILINE)
RUNNING = RunState.RUNNING


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is asked for: `trainings` at each number of `workers`, then `job_minutes` of periodic jobs (0: none)."""

    workers: tuple[int, ...]
    trainings: int
    chaos: bool
    namespaces: bool
    job_minutes: int
    seed: int


class ClusterTest:
    """One test. `show(share, text)` is called as it goes on."""

    def __init__(self, plan: Plan, show: Callable[[float, str], None]) -> None:
        self.plan, self.show = plan, show
        self.folder = Path(settings.DATA_DIR) / "clusters"
        self.found: list[str] = []
        self.done = 0

    def run(self) -> dict[str, Any]:
        """Run every stage; returns the report."""
        call_command("migrate", verbosity=0)
        market_clock.ensure()
        self.folder.mkdir()
        try:
            stages = self._stages()
            jobs = self._jobs(max(self.plan.workers)) if self.plan.job_minutes else {}
        finally:
            discard_messages()
        self.found += judge.orphans()
        return {
            "database": settings.DATABASES["default"]["ENGINE"].rpartition(".")[2],
            "broker": "redis" if settings.OPTIONS["REDIS_URL"] else "orm",
            "namespaces": self.plan.namespaces,
            "chaos": self.plan.chaos,
            "stages": stages,
            "jobs": jobs,
            "violations": len(self.found),
            "found": self.found,
        }

    # --- trainings ---

    def _stages(self) -> list[dict[str, Any]]:
        if not self.plan.namespaces:
            return [self._stage(count, None) for count in self.plan.workers]
        urls = {"database_url": settings.OPTIONS["DATABASE_URL"], "redis_url": settings.OPTIONS["REDIS_URL"]}
        with Network(max(self.plan.workers), **urls) as network:
            return [self._stage(count, network) for count in self.plan.workers]

    def _stage(self, count: int, network: Network | None) -> dict[str, Any]:
        market_key = f"stage{count}"
        symbols = prepare_market(market_key, self.plan.trainings, seed=self.plan.seed)
        names = [f"{market_key}-host{index + 1}" for index in range(count)]
        chaos = BrokerChaos(self.plan.seed, queues=(settings.TRAINING_QUEUE,)) if self.plan.chaos else None
        cut = Cut(network, count - 1) if network is not None and count > 1 else None
        with hosts(names, queue=settings.TRAINING_QUEUE, folder=self.folder, network=network) as started:
            self._wait_alive(names, started)
            began = clock.monotonic()
            batch = -(-len(symbols) // BATCHES) if chaos is not None else len(symbols)
            waiting = list(symbols)
            while waiting or open_runs(market_key):
                for host in started:
                    host.revive()
                if waiting and (chaos is None or open_runs(market_key) <= batch // 2):
                    for symbol in waiting[:batch]:
                        request(symbol)
                    del waiting[:batch]
                if chaos is not None:
                    chaos.step()
                if cut is not None:
                    cut.look(market_key, names[-1])
                if self._too_long(clock.monotonic() - began, market_key, started):
                    break
                clock.sleep(LOOK_SECONDS)
            seconds = clock.monotonic() - began
            if cut is not None:
                self.found += cut.end(market_key, names[-1])
        self.done += len(symbols)
        self.found += [f"{market_key}: {text}" for text in judge.judge_runs(market_key, asked=len(symbols))]
        logs = "".join(host.log() for host in started)
        return {
            "workers": count,
            "trainings": len(symbols),
            "seconds": round(seconds, 1),
            "per_minute": round(len(symbols) / seconds * 60, 1),
            **judge.spread(market_key),
            "restarts": sum(host.restarts for host in started),
            "refused": len(LOST_LINE.findall(logs)),
            "ended_themselves": logs.count("training_killed_itself"),
            **({} if chaos is None else {"accidents": dict(chaos.counts)}),
            **({} if cut is None else {"cuts": cut.cuts, "taken_over": cut.takeovers}),
        }

    def _wait_alive(self, names: list[str], started: list[Host]) -> None:
        deadline = clock.monotonic() + LEAST_PATIENCE
        while not set(names) <= {pulse.name for pulse in heartbeats.pulses(kind="worker") if pulse.alive}:
            dead = [host for host in started if host.process.poll() is not None]
            if dead or clock.monotonic() > deadline:
                logs = "\n".join(host.log()[-2000:] for host in dead or started)
                raise RuntimeError(f"not every cluster began within {LEAST_PATIENCE:.0f} s:\n{logs}")
            clock.sleep(LOOK_SECONDS)

    def _too_long(self, seconds: float, market_key: str, started: list[Host]) -> bool:
        left = open_runs(market_key)
        total = len(self.plan.workers) * self.plan.trainings
        self.show(
            min((self.done + self.plan.trainings - left) / total, 0.99), f"{len(started)} workers, {left} runs open"
        )
        if seconds < max(LEAST_PATIENCE, PATIENCE_PER_RUN * self.plan.trainings):
            return False
        self.found.append(f"{market_key}: {left} runs were still open after {seconds:.0f} s")
        return True

    # --- periodic jobs ---

    def _jobs(self, count: int) -> dict[str, Any]:
        """Let `count` light clusters, each with a scheduler, run the jobs; with chaos their messages suffer too."""
        names = [f"light-host{index + 1}" for index in range(count)]
        chaos = BrokerChaos(self.plan.seed, queues=(settings.LIGHT_QUEUE,)) if self.plan.chaos else None
        with hosts(names, queue=settings.LIGHT_QUEUE, folder=self.folder) as started:
            self._wait_alive(names, started)
            began = clock.monotonic()
            while clock.monotonic() - began < self.plan.job_minutes * 60:
                for host in started:
                    host.revive()
                if chaos is not None:
                    chaos.step()
                self.show(0.99, f"{count} light workers, {clock.monotonic() - began:.0f} s")
                clock.sleep(LOOK_SECONDS)
        # A job that asks first whether it is due may have nothing to do; with chaos a lost message costs a slot.
        minutes = timedelta(minutes=self.plan.job_minutes)
        always = [job for job in registered() if not job.due and chaos is None]
        report, found = judge.judge_jobs(least={job.name: max(1, minutes // job.period) for job in always})
        self.found += found
        return {"workers": count, **report, **({} if chaos is None else {"accidents": dict(chaos.counts)})}


class Cut:
    """Cuts a host off while it trains, again and again, and joins it when another has taken its run over, or late.

    Joined early, it speaks late and is refused; joined late, its training has ended itself, as it must (T14).
    """

    def __init__(self, network: Network, index: int) -> None:
        self._network, self._index = network, index
        self._held: tuple[int, int] | None = None  # run and token of the host that is cut off
        self._since = 0.0
        self.cuts = self.takeovers = 0

    def look(self, market_key: str, hostname: str) -> None:
        """Call it again and again: cuts when the host trains, mends when its run was taken over."""
        if self._held is not None:
            taken = not TrainingRun.objects.filter(
                pk=self._held[0], fencing_token=self._held[1], state=RUNNING
            ).exists()
            if taken or clock.monotonic() - self._since > CUT_LEASES * settings.TRAIN_LEASE_SECONDS:
                self.takeovers += taken
                self._network.mend(self._index)
                self._held = None
        elif self.cuts < MOST_CUTS:
            running = TrainingRun.objects.filter(
                scope__market=market_key, state=RUNNING, owner__contains=f"@{hostname}"
            ).first()
            if running is not None and running.fencing_token is not None:
                self._network.cut(self._index)
                self._held, self._since = (running.pk, running.fencing_token), clock.monotonic()
                self.cuts += 1

    def end(self, market_key: str, hostname: str) -> list[str]:
        """Join the host, if it is cut off, and give it time to speak late; returns what is wrong."""
        while self._held is not None:
            self.look(market_key, hostname)
            clock.sleep(LOOK_SECONDS)
        deadline = clock.monotonic() + 2 * settings.TRAIN_LEASE_SECONDS
        while clock.monotonic() < deadline:
            clock.sleep(LOOK_SECONDS)
        if not self.cuts:
            return [f"{market_key}: {hostname} was never seen training, so it was not cut off"]
        if self.takeovers < self.cuts:
            return [f"{market_key}: {hostname} was cut off {self.cuts} times, {self.takeovers} runs were taken over"]
        return []


def open_runs(market_key: str) -> int:
    return TrainingRun.objects.filter(scope__market=market_key, state__in=OPEN_STATES).count()


def prepare_market(market_key: str, count: int, *, seed: int) -> list[Symbol]:
    """Store `count` short simulated histories under a market of its own; returns their symbols."""
    step_ms = timeframe_ms(settings.TIMEFRAME)
    now = clock.market_now()
    end_ms = floor_ms(to_ms(now), step_ms)
    data = SimulatedMarket(seed=seed, now_ms=lambda: end_ms, symbols=count, specials=False, learnable=True)
    codes = sorted(each.symbol for each in data.instruments())[:count]
    bars = HISTORY_DAYS * DAY_MS // step_ms
    candles = {code: data.candles(code, settings.TIMEFRAME, end_ms - bars * step_ms, bars) for code in codes}
    market.candle_store().write(market_key, settings.TIMEFRAME, candles)
    rows = [
        Symbol(
            market=market_key, code=code, base=code.partition("/")[0], quote="USDT", in_universe=True,
            history_days=HISTORY_DAYS, candle_count=bars, expected_count=bars, history_coverage=1.0,
            created_at=now, last_candle_at=now, last_evaluated_at=now, next_evaluation_at=now,
        )
        for code in codes
    ]  # fmt: skip
    Symbol.objects.bulk_create(rows)
    return list(Symbol.objects.filter(market=market_key).order_by("code"))


def request(symbol: Symbol) -> TrainingRun:
    """Ask for a training of one symbol, as a person would."""
    key = f"{registry.SINGLE_SYMBOL}:{symbol.market}:{settings.TIMEFRAME}:{symbol.code}"
    scope, _ = TrainingScope.objects.get_or_create(
        key=key,
        defaults={
            "market": symbol.market,
            "training_mode": registry.SINGLE_SYMBOL,
            "timeframe": settings.TIMEFRAME,
            "symbol": symbol,
        },
    )
    return services.request_run(
        scope=scope, trigger=RunTrigger.MANUAL, cause="MANUAL: user=clustertest", symbols=[symbol.pk]
    )
