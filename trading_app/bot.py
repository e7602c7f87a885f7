"""The bot: `tick()` is one pass and says what it did; `run()` only loops.

A pass: keep the account's lease, read the bot's row, say that we live (at most three queries when nothing happened, for
any number of symbols); then what the exchange has to tell, new models, and the newest closed bar, once.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from django.conf import settings
from django.db import DatabaseError, connection
from django.db.models import Subquery

from coverage_app import market
from exchanges.errors import ExchangeError
from exchanges.port import Instrument, MarketData, Venue
from marketdata.store import CandleStore
from ops_app import alerts, clock, heartbeats, leases
from ops_app.choices import Severity
from ops_app.leases import LeaseLost, LeaseToken
from ops_app.prepared import Prepared
from quant.policy import back_off_ms
from quant.timeframes import timeframe_ms
from trading_app import takeover
from trading_app.bar import BarTrader
from trading_app.choices import DesiredState, OrderPurpose
from trading_app.equity import close_all, entries_blocked
from trading_app.exceptions import OrderTakenError
from trading_app.loader import ModelLoader
from trading_app.models import Bot, Order, Position
from trading_app.orders import OrderDesk, spool_path
from trading_app.protection import close_position, open_positions, protect
from trading_app.reconcile import Reconciled, Reconciler
from trading_app.report import TickReport
from trading_app.spool import Spool
from trading_app.trouble import RETRY_BASE_MS, RETRY_CAP_MS, Trouble
from trading_app.venue import Account, open_venue
from training_app import artifacts
from training_app.models import ActiveModel

log = structlog.get_logger(__name__)

HEARTBEAT_SECONDS = 5.0
HEARTBEAT_TTL_SECONDS = 60
RECONCILE_EVERY = dt.timedelta(minutes=5)
"""Market time between whole reconciliations when nothing asks for one."""
PASS_SECONDS, MIN_PASS_SECONDS, LEAST_PASS_SECONDS = 60.0, 1.0, 0.1
PASSES_PER_BAR = 4
"""A clock so fast that a bar lasts a second or two gets shorter passes, so that no bar closes between two of them."""
SLICE_SECONDS = 1.0

_row = Prepared(
    lambda pk: Bot.objects.filter(pk=pk).values_list(
        Subquery(ActiveModel.objects.order_by("-generation").values("generation")[:1]),
        *(column.attname for column in Bot._meta.concrete_fields),
    )
)

_lookups = Prepared(lambda bot: Order.objects.open().filter(bot=bot).values_list("next_lookup_at"))
_closing = Prepared(lambda bot: Position.objects.open().filter(bot=bot, orders__purpose=OrderPurpose.EXIT))


@dataclass(slots=True)
class _Session:
    """What this process holds while the account is its own: thrown away with the lease."""

    account: Account
    desk: OrderDesk
    reconciler: Reconciler
    orders_from: float
    reconcile_at: dt.datetime | None = None
    busy: bool = True
    closing: bool = False
    no_entries: bool = False
    lookup_at: dt.datetime | None = None


@dataclass(slots=True)
class BotRunner:
    """One bot on one account. Everything that it needs may be passed in; by default it comes from the settings."""

    bot: Bot
    data: MarketData = field(default_factory=market.market_data)
    store: CandleStore = field(default_factory=market.candle_store)
    venue: Venue | None = None
    lease_ttl: dt.timedelta = field(default_factory=takeover.lease_ttl)
    load: Callable[..., object] = artifacts.load
    holder: str = field(default_factory=lambda: leases.holder_name("bot"))
    loader: ModelLoader = field(init=False)
    trader: BarTrader = field(init=False)
    spool: Spool = field(init=False)
    venue_trouble: Trouble = field(init=False, default_factory=lambda: Trouble("exchange"))
    _session: _Session | None = field(init=False, default=None)
    _beat_at: float = field(init=False, default=float("-inf"))
    _passes: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.venue is None:
            self.venue = open_venue(self.bot, self.data)
        self.spool = Spool(spool_path(self.bot))
        self.loader = ModelLoader(self.bot, load=self.load)  # type: ignore[arg-type]  # tests pass a counting one
        self.trader = BarTrader(bot=self.bot, data=self.data, store=self.store, loader=self.loader)

    # --- one pass

    def tick(self) -> TickReport:
        """Do one pass. Sends nothing when the account is another's; raises nothing for what an exchange does wrong."""
        report = TickReport()
        if not self._hold_account(report):
            return report
        session = self._session
        assert session is not None  # noqa: S101 - for the type checker: _hold_account made it
        newest_generation = self._read_row()
        self._say_alive()
        sent_before = session.desk.sent
        try:
            self._work(session, newest_generation, report)
        except (LeaseLost, OrderTakenError) as error:
            log.warning("account_lost", account=self.bot.account, error=str(error))
            self._leave(session)  # if it is ours still, the next pass begins anew with a larger token
            self._session = None
            report.lease = "lost"
        except DatabaseError:
            # What was sent may not be in the tables: the next pass reads all, and protects what it finds (F29, I18).
            session.reconcile_at = None
            raise
        finally:
            report.orders_sent = session.desk.sent - sent_before
        self._passes += 1
        if self._passes == 1:
            self._say_alive(now=True)  # who waits for this bot sees at once that a whole pass went well
        return report

    def _work(self, session: _Session, newest_generation: int, report: TickReport) -> None:
        if self.spool:
            session.desk.write_spooled()
        no_entries = entries_blocked(self.bot) is not None
        if no_entries and not session.no_entries:
            session.reconcile_at = None  # what waits to open a position is cancelled now, not at the next round (F38)
        session.no_entries = no_entries
        if self.venue_trouble.due:
            self._hear_venue(session, report)
        if newest_generation > self.loader.seen_generation:
            loaded = self.loader.refresh()
            report.models_loaded, report.models_refused = loaded.loaded, loaded.refused
            self.trader.models_changed()
        if clock.monotonic() < session.orders_from:
            # B5: what the last owner sent before it was frozen may still be accepted until then.
            report.waiting = "RECEIVE_WINDOW"
            return
        all_for = close_all(self.bot)
        if all_for is not None and not self.venue_trouble.quiet:
            self._close_now(session, all_for, report)
        if self.bot.desired_state != DesiredState.STOP and self.trader.trade_bar(
            session.desk, session.reconciler, report,
            venue_error=self.venue_trouble.detail, quiet=self.venue_trouble.quiet,
        ):  # fmt: skip
            self._after_orders(session, report)

    # --- the right to trade

    def _hold_account(self, report: TickReport) -> bool:
        held = self._session
        if held is not None:
            lease = held.account.lease
            # Nobody can have taken what surely holds still; writes and sends check it in the database all the same.
            if (lease.locally_valid() and not lease.due()) or leases.renew(lease):
                return True
        taken = takeover.take(self.bot, holder=self.holder, ttl=self.lease_ttl)
        if taken is None:
            self._session = None
            report.lease = "busy"
            return False
        self.adopt(taken)
        report.lease = "taken"
        return True

    def adopt(self, lease: LeaseToken) -> None:
        """Begin to own the account. Tokens count acquisitions: the very next one means that nobody was in between."""
        session = self._session
        if session is not None and lease.token == session.account.lease.token + 1:
            session.account.lease = lease
            return
        assert self.venue is not None  # noqa: S101 - made in __post_init__
        account = Account(bot=self.bot, venue=self.venue, lease=lease)
        account.refresh_symbols()
        self.spool.refresh()  # whoever had the account while this process waited may have kept answers
        desk = OrderDesk(account, self.spool)
        wait = takeover.fence().total_seconds() if lease.left_by not in ("", self.holder) else 0.0
        self._session = _Session(account, desk, Reconciler(desk), orders_from=clock.monotonic() + wait)
        self.bot.started_at = clock.market_now()
        Bot.objects.filter(pk=self.bot.pk).update(started_at=self.bot.started_at)

    def release(self) -> None:
        """Give the account back, so that the next bot need not wait; open positions keep their stops."""
        if self._session is not None:
            self._leave(self._session)
            self._session = None
        heartbeats.stop(self._heartbeat_name)

    @staticmethod
    def _leave(session: _Session) -> None:
        """Give the account back; who has not waited out the owner before leaves the wait to the next one (B5)."""
        if clock.monotonic() < session.orders_from:
            leases.end(session.account.lease)
        else:
            leases.release(session.account.lease)

    def _read_row(self) -> int:
        """Read what people want, and the newest generation of a model, in one query."""
        ((newest_generation, *values),) = _row.rows(self.bot.pk)
        for column, value in zip(Bot._meta.concrete_fields, values, strict=True):
            setattr(self.bot, column.attname, value)
        return int(newest_generation or 0)

    @property
    def _heartbeat_name(self) -> str:
        return f"bot:{self.bot.name}"

    def _say_alive(self, *, now: bool = False) -> None:
        if not now and clock.monotonic() < self._beat_at + HEARTBEAT_SECONDS:
            return
        self._beat_at = clock.monotonic()
        heartbeats.beat(
            self._heartbeat_name,
            "bot",
            ttl_seconds=HEARTBEAT_TTL_SECONDS,
            detail={
                "state": self.bot.desired_state,
                "generation": self.bot.loaded_generation,
                "bar": self.bot.last_bar_at.isoformat() if self.bot.last_bar_at else None,
                "exchange_error": self.venue_trouble.detail,
                "passes": self._passes,
            },
        )

    # --- the exchange

    def _hear_venue(self, session: _Session, report: TickReport) -> None:
        """Take over what happened at the exchange: all of it when a reconciliation is due, else fills and look-ups."""
        now = clock.market_now()
        try:
            session.account.instruments = session.account.instruments or self._instruments()
            if session.reconcile_at is None or now >= session.reconcile_at:
                self._reconcile(session, report)
            elif session.busy:
                self._follow(session, report, now)
        except ExchangeError as error:
            self._venue_failed(error, report)
            session.reconcile_at = None  # whole, as soon as it answers again
            return
        if self.venue_trouble.over():
            alerts.resolve_alert(self._venue_alert)

    def _reconcile(self, session: _Session, report: TickReport) -> None:
        may_send = clock.monotonic() >= session.orders_from
        try:
            session.account.instruments = self._instruments()
        except ExchangeError as error:  # public data are away: with the rules of before, exits and stops go on (I20)
            log.warning("instruments_not_read", error=str(error))
        session.account.refresh_symbols()
        done = session.reconciler.run(may_send=may_send)
        report.reconciled, report.fills = True, report.fills + done.fills
        report.changes += done.changes
        balance = session.account.venue.balance()
        self.trader.balance = balance
        believed = self.trader.watch.look(float(balance.equity), clock.market_now())
        self._note_open(session)
        # Once more as soon as orders may be sent, and while a difference is being watched.
        again_soon = not may_send or session.reconciler.unsettled or not believed
        session.reconcile_at = clock.market_now() + (dt.timedelta(seconds=5) if again_soon else RECONCILE_EVERY)
        if done.changes:
            log.info("reconciled", account=self.bot.account, **_changes(done))

    def _follow(self, session: _Session, report: TickReport, now: dt.datetime) -> None:
        """Between reconciliations, while something is open: fills, due look-ups, and exits that left something open."""
        applied = session.reconciler.sync_fills()
        report.fills += applied.new
        looked = session.lookup_at is not None and now >= session.lookup_at
        if looked:
            session.reconciler.look_up_due()
        report.following = bool(applied.new or looked or session.closing)
        if not report.following:
            return
        if clock.monotonic() >= session.orders_from:
            self._after_orders(session, report)
        else:
            self._note_open(session)

    def _after_orders(self, session: _Session, report: TickReport) -> None:
        """After anything was sent or filled: read the fills, place the stops, read again what that filled."""
        try:
            report.fills += session.reconciler.sync_fills().new
            if protect(session.desk).changes:
                report.fills += session.reconciler.sync_fills().new
                protect(session.desk)
        except ExchangeError as error:
            self._venue_failed(error, report)
            session.reconcile_at = None
        self._note_open(session)

    def _note_open(self, session: _Session) -> None:
        """Remember what is open, so that an idle pass need not ask."""
        lookups = _lookups.rows(self.bot.pk)
        session.closing = _closing.exists(self.bot.pk)
        session.busy = bool(lookups) or open_positions.exists(self.bot.pk) or session.desk.awaits_fills()
        session.lookup_at = min((at for (at,) in lookups if at is not None), default=None)

    def _close_now(self, session: _Session, why: str, report: TickReport) -> None:
        """Close what is open in this pass, not at the next bar."""
        waiting = Position.objects.open().filter(bot=self.bot, foreign=False).exclude(orders__purpose=OrderPurpose.EXIT)
        positions = list(waiting)
        for position in positions:
            if close_position(session.desk, position, why) is not None:
                report.exits += 1
        if positions:
            self._after_orders(session, report)

    def _instruments(self) -> dict[str, Instrument]:
        return {each.symbol: each for each in self.data.instruments()}

    @property
    def _venue_alert(self) -> str:
        return f"exchange:{self.bot.name}"

    def _venue_failed(self, error: Exception, report: TickReport) -> None:
        self.venue_trouble.failed(error)
        report.errors.append(self.venue_trouble.detail)
        log.warning("exchange_failed", error=self.venue_trouble.detail, failures=self.venue_trouble.failures)
        alerts.raise_alert(
            self._venue_alert,
            f"{self.bot.name}: the exchange does not answer ({self.venue_trouble.detail}). No entries; stops stay.",
            Severity.WARNING,
        )

    # --- the loop

    def run(self, *, interval: float, stopped: Callable[[], bool], max_ticks: int | None = None) -> None:
        """Tick every `interval` real seconds until told to stop. The lease is kept between ticks."""
        ticks = 0
        failures = 0
        while not stopped():
            try:
                report = self.tick()
                failures = 0
                if not report.idle and (said := str(report)):
                    log.info("tick", report=said)
            except DatabaseError:
                # Not being able to write means not being able to send: wait, the stops are at the exchange (F28).
                failures += 1
                log.exception("database_failed", failures=failures)
                connection.close()
            ticks += 1
            if max_ticks is not None and ticks >= max_ticks:
                return
            wait = (
                interval if not failures else max(interval, back_off_ms(failures, RETRY_BASE_MS, RETRY_CAP_MS) / 1000)
            )
            self._sleep(wait, stopped)

    def _sleep(self, seconds: float, stopped: Callable[[], bool]) -> None:
        until = clock.monotonic() + seconds
        while not stopped() and (left := until - clock.monotonic()) > 0:
            clock.sleep(min(left, SLICE_SECONDS))
            session = self._session
            try:
                if session is not None and session.account.lease.due() and not leases.renew(session.account.lease):
                    return  # the next tick finds out whose it is
            except DatabaseError:
                log.exception("lease_not_renewed")
                return


def pass_interval() -> float:
    """Return the real seconds between passes: BOT_INTERVAL, or a minute of market time but at least a second.

    Where a bar lasts only seconds of real time (REPLAY_SPEED=3600), a quarter of it.
    """
    quarter = timeframe_ms(settings.TIMEFRAME) / 1000 / clock.speed() / PASSES_PER_BAR
    least = max(min(MIN_PASS_SECONDS, quarter), LEAST_PASS_SECONDS)
    return settings.BOT_INTERVAL or max(PASS_SECONDS / clock.speed(), least)


def _changes(done: Reconciled) -> dict[str, int]:
    return {
        name: getattr(done, name)
        for name in ("fills", "not_sent", "resolved", "orders", "positions", "protection")
        if getattr(done, name)
    }
