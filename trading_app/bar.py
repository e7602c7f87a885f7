"""Trades the newest closed bar once: decisions and intents in one transaction, then the orders are sent."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import F

from exchanges.errors import ExchangeError
from exchanges.port import Balance, MarketData
from marketdata.errors import StoreError
from marketdata.store import CandleStore
from ops_app import alerts, clock, journal, leases
from ops_app.choices import Severity
from quant.candles import Candles
from quant.engine import EngineSpec, decide
from quant.reasons import reason
from quant.risk import RiskLimits
from quant.timeframes import from_ms, last_closed_open_ms, timeframe_ms, to_ms
from trading_app import deciding, equity, selectors
from trading_app.deciding import Outgoing, Portfolio
from trading_app.feed import BarRow, FeatureFeed, closes_of
from trading_app.loader import LoadedModel, ModelLoader
from trading_app.models import Bot, Decision, EquityPoint, Order
from trading_app.orders import OrderDesk
from trading_app.reconcile import Reconciler
from trading_app.refusals import refusals
from trading_app.report import TickReport
from training_app import registry
from training_app import selectors as training
from training_app.selectors import SymbolState

log = structlog.get_logger(__name__)

GRACE_MS = 30_000
"""Market time that a bar waits for candles which are late; then it is decided without them (F22, F23)."""
OUTAGE_GRACE_MS = 300_000
"""Market time that a bar waits for market data as a whole; then only exits are decided (I20)."""
FETCH_RETRY_SECONDS = 2.0


class BarTakenError(Exception):
    """Another process decided this bar, or a person intervened while it was decided: nothing of ours is written."""


@dataclass(slots=True)
class BarTrader:
    """Keeps the features of the held models' panel, and decides each bar once."""

    bot: Bot
    data: MarketData
    store: CandleStore
    loader: ModelLoader
    feed: FeatureFeed | None = field(init=False, default=None)
    balance: Balance | None = field(init=False, default=None)
    watch: equity.EquityWatch = field(init=False)
    _fetch_at: float = field(init=False, default=float("-inf"))
    _clock_behind: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.watch = equity.EquityWatch(self.bot)

    @property
    def step_ms(self) -> int:
        return timeframe_ms(settings.TIMEFRAME)

    # --- between two bars

    def models_changed(self) -> None:
        """Prepare features for the panel of the held models; the same panel with the same start keeps its state."""
        for held in self.loader.models.values():
            if registry.expired(held.artifact, clock.market_now()) is None:
                alerts.resolve_alert(_expired_alert(held.slot))
        since_ms = self.loader.panel_since_ms
        if self.feed is not None and list(self.feed.since_ms.items()) == list(since_ms.items()):
            return
        if not since_ms:
            self.feed = None
            return
        self.feed = FeatureFeed(
            data=self.data,
            store=self.store,
            market=self.bot.market,
            timeframe=settings.TIMEFRAME,
            schema=registry.feature_schema(),
            since_ms=since_ms,
        )
        # The bar that is closed and undecided is stepped live; everything before it is replayed.
        newest = last_closed_open_ms(clock.market_now_ms(), self.step_ms)
        decided = self.bot.last_bar_at is not None and to_ms(self.bot.last_bar_at) >= newest
        try:
            self.feed.rebuild(newest if decided else newest - self.step_ms)
        except (ExchangeError, StoreError) as error:
            log.warning("replay_failed", error=str(error), next="tried again at the next bar")

    # --- a bar

    def trade_bar(
        self, desk: OrderDesk, reconciler: Reconciler, report: TickReport, *, venue_error: str = "", quiet: bool = False
    ) -> bool:
        """Decide the newest closed bar if it is not decided yet; returns whether orders were sent.

        With a `venue_error` the account is not asked; with `quiet`, which the exchange asked for, nothing is sent:
        exits are sent by the reconciliation after it, and the exchange's stops protect meanwhile (F26).
        """
        now_ms = clock.market_now_ms()
        open_ms = last_closed_open_ms(now_ms, self.step_ms)
        if self.bot.last_bar_at is not None and to_ms(self.bot.last_bar_at) >= open_ms:
            self._watch_clock(open_ms, report)
            return False
        arrived = self._arrivals(open_ms, now_ms, report)
        if arrived is None:
            return False
        replays = self.feed.replays if self.feed is not None else 0
        row = self._step(open_ms, arrived, report)
        if self.feed is not None:
            report.replays = self.feed.replays - replays
        limits = equity.limits_of(self.bot)
        portfolio = deciding.read_portfolio(self.bot, open_ms=open_ms, bar_ms=self.step_ms, limits=limits)
        equity_now = self._equity(desk, open_ms, report, ask=not venue_error)
        venue_error = venue_error or ("; ".join(report.errors) if self.balance is None else "")
        try:
            orders = self._decide_and_write(
                desk, reconciler, portfolio, limits, row, open_ms, now_ms, equity_now, venue_error, report
            )
        except BarTakenError as error:
            log.warning("bar_taken", error=str(error))
            return False
        if quiet:
            report.waiting = reason("EXCHANGE_QUIET", held_back=len(orders))
            return False
        desk.send_all(orders)
        return bool(orders)

    def _watch_clock(self, open_ms: int, report: TickReport) -> None:
        """Say so when the decided bar is not closed yet: the clock ran ahead and came back, as after a bad NTP answer.

        Its bars were decided, so nothing is decided until they close; the stops at the exchange hold meanwhile.
        """
        decided = self.bot.last_bar_at
        behind = decided is not None and to_ms(decided) > open_ms
        if behind == self._clock_behind:
            return
        self._clock_behind = behind
        if not behind:
            alerts.resolve_alert(f"clock:{self.bot.name}")
            return
        report.waiting = reason("CLOCK_BEHIND", decided=decided, newest_closed_at_ms=open_ms)
        alerts.raise_alert(
            f"clock:{self.bot.name}",
            f"{self.bot.name}: the clock was ahead and came back. Bars up to {decided:%Y-%m-%d %H:%M} are decided: "
            "until then only the stops at the exchange protect. Check the host's time; close by hand if that is long.",
            Severity.CRITICAL,
        )

    def _arrivals(self, open_ms: int, now_ms: int, report: TickReport) -> Mapping[str, Candles] | None:
        """Return what arrived; None: wait a little longer for what is late."""
        if self.feed is None:
            return {}
        closed_for = now_ms - (open_ms + self.step_ms)
        if clock.monotonic() < self._fetch_at and closed_for < OUTAGE_GRACE_MS:
            report.waiting = "CANDLES"
            return None
        try:
            arrived = self.feed.fetch(open_ms)
        except ExchangeError as error:
            report.errors.append(f"{type(error).__name__}: {error}"[:200])
            self._fetch_at = clock.monotonic() + FETCH_RETRY_SECONDS
            alerts.raise_alert(
                self._data_alert,
                f"{self.bot.name}: no market data ({error}). No entries; positions keep their stops and time barriers.",
                Severity.WARNING,
            )
            if closed_for < OUTAGE_GRACE_MS:
                report.waiting = "CANDLES"
                return None
            self.feed.stale = reason("OUTAGE", bar_at_ms=open_ms)
            return {}
        alerts.resolve_alert(self._data_alert)
        late = self.feed.waiting_for(open_ms, arrived)
        if late and closed_for < min(GRACE_MS, self.step_ms // 2):
            report.waiting = reason("CANDLES", late=len(late), first=late[0])
            return None
        return arrived

    def _step(self, open_ms: int, arrived: Mapping[str, Candles], report: TickReport) -> BarRow | None:
        """Advance the features; None when there is nothing to compute them from (then only exits are decided)."""
        if self.feed is None or (not arrived and self.feed.stale.startswith("OUTAGE")):
            return None
        try:
            return self.feed.advance(open_ms, arrived)
        except (ExchangeError, StoreError) as error:
            report.errors.append(f"{type(error).__name__}: {error}"[:200])
            self.feed.stale = "REPLAY_FAILED"
            alerts.raise_alert(
                self._data_alert, f"{self.bot.name}: features cannot be replayed: {error}", Severity.CRITICAL
            )
            return None

    @property
    def _data_alert(self) -> str:
        return f"market_data:{self.bot.name}"

    def _equity(self, desk: OrderDesk, open_ms: int, report: TickReport, *, ask: bool) -> float:
        """Return the account's equity, checked against its limits; the last believed one when the exchange is silent
        or not to be believed.
        """
        self.balance = None
        try:
            self.balance = desk.account.venue.balance() if ask else None
        except ExchangeError as error:
            report.errors.append(f"{type(error).__name__}: {error}"[:200])
        if self.balance is not None and not self.watch.look(
            float(self.balance.equity), from_ms(open_ms + self.step_ms)
        ):
            self.balance = None
        return self.watch.known

    def _decide_and_write(
        self,
        desk: OrderDesk,
        reconciler: Reconciler,
        portfolio: Portfolio,
        limits: RiskLimits,
        row: BarRow | None,
        open_ms: int,
        now_ms: int,
        equity_now: float,
        venue_error: str,
        report: TickReport,
    ) -> list[Order]:
        account = desk.account
        covering = self.loader.covering()  # one picture for the whole bar (F34)
        states = {state.code: state for state in training.symbol_states(self.bot.market)}
        if states.keys() - account.symbol_ids.keys():
            account.refresh_symbols()
        symbols = self._symbols(states, portfolio, row)
        refused = refusals(self.bot, from_ms(now_ms))
        blocked = equity.entries_blocked(self.bot) or reconciler.others.evidence or self.watch.doubt or refused.account
        if blocked is None and venue_error:
            blocked = reason("VENUE_ERROR", detail=venue_error)
        closes = self._closes(symbols, portfolio, row, open_ms)
        schema = self.feed.schema if self.feed is not None else registry.feature_schema()
        bar = deciding.bar_input(
            row=row,
            open_ms=open_ms,
            symbols=symbols,
            closes=closes,
            covering=covering,
            refusals=deciding.refusals_of(
                states.values(),
                foreign=portfolio.foreign,
                drifting=reconciler.drifting,
                expired=refused.symbols | self._expired(covering, now_ms),
                instruments=account.instruments,
            ),
            schema=schema,
            signal=settings.PRIMARY_SIGNAL,
        )
        state = deciding.portfolio_state(
            portfolio,
            equity=equity_now,
            bot=self.bot,
            entries_blocked=blocked,
            close_all=equity.close_all(self.bot),
            guard=self._guard(covering),
        )
        spec = EngineSpec(
            bar_ms=self.step_ms,
            label=registry.label_spec(),
            limits=limits,
            sizing=equity.sizing_of(self.bot),
        )
        closes_by_row = dict(zip(symbols, bar.close.tolist(), strict=True))
        ready = [
            deciding.outgoing(
                decision,
                bot=self.bot,
                open_ms=open_ms,
                symbol_id=account.symbol_ids[decision.symbol],
                close=closes_by_row.get(decision.symbol, np.nan),
                held=covering.get(decision.symbol),
                state=states.get(decision.symbol),
                instrument=account.instruments.get(decision.symbol),
                position=portfolio.positions.get(decision.symbol),
                now_ms=now_ms,
            )
            for decision in decide(bar=bar, portfolio=state, spec=spec, schema=schema)
            if decision.symbol in account.symbol_ids
        ]
        point = self._point(portfolio, closes_by_row, open_ms)
        orders = self._write(desk, ready, open_ms, blocked or "", point, report)
        report.bar_at, report.decisions = from_ms(open_ms), len(ready)
        return orders

    def _symbols(self, states: Mapping[str, SymbolState], portfolio: Portfolio, row: BarRow | None) -> tuple[str, ...]:
        """Return every symbol that a decision is owed: the panel, the universe, and whatever is held."""
        elsewhere = {"NOT_IN_UNIVERSE", "DELISTED"}
        universe = {
            code
            for code, state in states.items()
            if state.reason not in elsewhere and not any(block.reason in elsewhere for block in state.blocks)
        }
        panel = set(row.symbols) if row is not None else set(self.loader.panel_since_ms)
        return tuple(sorted((universe | panel | portfolio.symbols) & states.keys()))

    def _closes(
        self, symbols: tuple[str, ...], portfolio: Portfolio, row: BarRow | None, open_ms: int
    ) -> dict[str, float]:
        in_panel = set(row.symbols) if row is not None else set()
        outside = tuple(symbol for symbol in symbols if symbol in portfolio.positions and symbol not in in_panel)
        return closes_of(self.data, outside, settings.TIMEFRAME, open_ms)

    def _expired(self, covering: Mapping[str, LoadedModel], now_ms: int) -> dict[str, str]:
        """Return why models are too old to open trades, by symbol, and let a person know of each once."""
        old: dict[int, str] = {}
        for held in {each.slot: each for each in covering.values()}.values():
            why = registry.expired(held.artifact, from_ms(now_ms))
            if why is not None:
                old[held.artifact.pk] = why
                alerts.raise_alert(
                    _expired_alert(held.slot),
                    f"{held.slot}: {why}. No entries until a newer model passes its gates; open positions are managed.",
                )
        return {symbol: old[held.artifact.pk] for symbol, held in covering.items() if held.artifact.pk in old}

    def _guard(self, covering: Mapping[str, LoadedModel]) -> float:
        """Return the smallest share that live precision leaves to the models held: three queries."""
        held = {each.artifact.pk for each in covering.values()}
        if not held:
            return 1.0
        return min(
            (equity.performance_guard(each) for each in selectors.promises(self.bot, artifact_ids=held)), default=1.0
        )

    def _point(self, portfolio: Portfolio, closes: Mapping[str, float], open_ms: int) -> EquityPoint | None:
        if self.balance is None:  # a gap in the curve says that the exchange was silent; an invented value would lie
            return None
        exposure = 0.0
        for code, position in portfolio.managed.items():
            price = closes.get(code, np.nan)
            exposure += position.quantity * (price if np.isfinite(price) else position.entry_price)
        return equity.equity_point(
            self.bot,
            at=from_ms(open_ms + self.step_ms),
            balance=self.balance,
            exposure=exposure,
            open_positions=len(portfolio.managed),
        )

    def _write(
        self,
        desk: OrderDesk,
        ready: list[Outgoing],
        open_ms: int,
        blocked: str,
        point: EquityPoint | None,
        report: TickReport,
    ) -> list[Order]:
        """Commit decisions and intents together: whatever is killed afterwards, this bar is never decided twice."""
        bar_at, before = from_ms(open_ms), self.bot.last_bar_at
        missed = _missed(before, bar_at, self.step_ms)
        leases.keep(desk.account.lease)
        with transaction.atomic():
            leases.held(desk.account.lease)
            # What people ask for was read when the pass began, and a replay takes its time: a kill switch that was
            # pulled meanwhile holds for this bar too.
            asked = {"desired_state": self.bot.desired_state, "kill_switch_at__isnull": self.bot.kill_switch_at is None}
            unchanged = Bot.objects.filter(pk=self.bot.pk, **asked)
            unchanged = unchanged.filter(last_bar_at=before) if before else unchanged.filter(last_bar_at__isnull=True)
            taken = unchanged.update(
                last_bar_at=bar_at, missed_bars=F("missed_bars") + missed, entries_blocked=blocked[:300]
            )
            if taken != 1:
                raise BarTakenError(
                    f"bar {bar_at:%Y-%m-%d %H:%M} of {self.bot.name}: another process decided it, or a person asked "
                    "for something else meanwhile; the next pass sees which"
                )
            if missed:
                journal.record(
                    "bars_missed",
                    reason("BARS_MISSED", bars=missed, after=before, decided=bar_at, rule="the newest bar only"),
                    subject=f"bot:{self.bot.name}",
                    severity=Severity.WARNING,
                )
            rows = Decision.objects.bulk_create([each.row for each in ready])
            new = [
                replace(each.order, decision=row)
                for each, row in zip(ready, rows, strict=True)
                if each.order is not None
            ]
            new.sort(key=lambda order: not order.reduce_only)  # exits first: they free margin
            orders = desk.write(new)
            if point is not None:
                EquityPoint.objects.bulk_create([point], ignore_conflicts=True)
        self.bot.last_bar_at, self.bot.entries_blocked = bar_at, blocked[:300]
        report.missed_bars = missed
        report.exits += sum(order.reduce_only for order in orders)
        report.entries += sum(not order.reduce_only for order in orders)
        return orders


def _missed(before: dt.datetime | None, bar_at: dt.datetime, step_ms: int) -> int:
    return 0 if before is None else (to_ms(bar_at) - to_ms(before)) // step_ms - 1


def _expired_alert(slot: str) -> str:
    return f"model_expired:{slot}"
