"""The account's worth against its limits: the day's loss, the fall from the peak, and how the model does live."""

from __future__ import annotations

import datetime as dt
import math

import structlog

from exchanges.port import Balance
from ops_app import alerts, clock
from ops_app.choices import Severity
from quant import risk
from quant.reasons import reason
from quant.sizing import SizingSpec
from trading_app import selectors, services
from trading_app.choices import DesiredState, KillPolicy, RiskKind
from trading_app.models import Bot, EquityPoint
from trading_app.selectors import Promise

log = structlog.get_logger(__name__)

MIN_NOTIONAL = 10.0
JUMP = 0.1
"""A change of equity between two readings that one of them must not prove alone."""
CONFIRM = dt.timedelta(seconds=5)
MOST_DOUBTS = 2


def limits_of(bot: Bot) -> risk.RiskLimits:
    """Return the limits of the bot's row. Raises ValueError for a limit that limits nothing."""
    return risk.RiskLimits(
        max_leverage=bot.max_leverage,
        max_exposure_fraction=bot.max_leverage,
        max_correlated_fraction=bot.max_correlated,
        max_position_fraction=bot.max_position,
        max_open_positions=bot.max_positions,
        daily_loss_fraction=bot.daily_loss_limit,
        max_drawdown_fraction=bot.max_drawdown,
        min_notional=MIN_NOTIONAL,
        cooldown_bars=bot.cooldown_bars,
    )


def sizing_of(bot: Bot) -> SizingSpec:
    return SizingSpec(daily_volatility_target=bot.volatility_target)


class EquityWatch:
    """Takes in what the exchange says the account is worth, and believes a surprise only when it is said twice.

    An answer that lies once (0, half) must not latch anything. So a reading that is more than JUMP from the one before,
    or that would breach a limit, is *doubted*: nothing is opened, nothing is latched, and it is asked again soon. It
    counts when the next reading, at least CONFIRM later, is within JUMP of it, or at the third in a row, whatever they
    are: a real loss is caught one pass later, two at most.
    """

    def __init__(self, bot: Bot) -> None:
        self.bot = bot
        self.doubt: str | None = None
        self._known: float | None = None
        self._proven = True
        self._doubted: float | None = None
        self._doubted_at: dt.datetime | None = None
        self._doubts = 0

    @property
    def known(self) -> float:
        """The newest equity that is believed, 0 if there is none."""
        if self._known is None:
            last = selectors.latest_equity(self.bot)
            self._known = last.equity if last is not None else None
        return self._known or 0.0

    def look(self, equity: float, at: dt.datetime) -> bool:
        """Take in a reading of the market time `at`; returns whether it is believed. Then the limits are watched."""
        known, now = self.known, clock.market_now()
        surprise = abs(equity - known) > JUMP * known or breached(self.bot, equity, at) is not None
        if known <= 0:  # nothing to compare with: the first reading stands until another one confirms it
            surprise = equity <= 0
        if not surprise:
            self._proven = known > 0
            self._believe(equity, at)
            return True
        if self._doubted_at is None or now >= self._doubted_at + CONFIRM:
            said_before = self._doubted is not None and abs(equity - self._doubted) <= JUMP * abs(self._doubted)
            if known > 0 and (said_before or self._doubts >= MOST_DOUBTS):
                if not self._proven:  # the one before was said once only: it was the lie
                    _apply(self.bot, {"peak_equity": equity, "day_start_equity": equity})
                self._proven = True
                self._believe(equity, at)
                return True
            self._doubts += 1
            self._doubted, self._doubted_at = equity, now
        self.doubt = reason("EQUITY_DOUBTED", read=equity, before=known, rule="said twice")
        log.warning("equity_doubted", bot=self.bot.name, read=equity, before=known)
        return False

    def _believe(self, equity: float, at: dt.datetime) -> None:
        self._known, self.doubt = equity, None
        self._doubted, self._doubted_at, self._doubts = None, None, 0
        watch_equity(self.bot, equity, at)


def breached(bot: Bot, equity: float, at: dt.datetime) -> str | None:
    """Return the limit that is not latched yet and that this equity would breach, or None."""
    limits = limits_of(bot)
    if not bot.daily_loss_hit and bot.day == at.astimezone(dt.UTC).date():
        why = risk.daily_loss_breached(equity=equity, day_start_equity=bot.day_start_equity or math.nan, limits=limits)
        if why is not None:
            return why
    if bot.kill_switch_at is None and bot.peak_equity is not None:
        return risk.drawdown_breached(equity=equity, peak_equity=bot.peak_equity, limits=limits)
    return None


def watch_equity(bot: Bot, equity: float, at: dt.datetime) -> None:
    """Roll the UTC market day, move the peak, and act on a breached limit. Writes only what changed.

    The daily loss stops entries until the next UTC day. The drawdown pulls the kill switch, which only a person resets.
    """
    limits = limits_of(bot)
    changed: dict[str, object] = {}
    day = at.astimezone(dt.UTC).date()
    if bot.day != day:
        # The new day starts from what the account was worth at its first look.
        changed.update(day=day, day_start_equity=equity, daily_loss_hit=False)
    if bot.peak_equity is None or equity > bot.peak_equity:
        changed["peak_equity"] = equity
    _apply(bot, changed)
    if not bot.daily_loss_hit:
        why = risk.daily_loss_breached(equity=equity, day_start_equity=bot.day_start_equity or math.nan, limits=limits)
        if why is not None:
            _apply(bot, {"daily_loss_hit": True})
            services.record_risk(bot=bot, kind=RiskKind.DAILY_LOSS, evidence=why, severity=Severity.CRITICAL)
            alerts.raise_alert(
                f"daily_loss:{bot.name}:{day}",
                f"{bot.name}: {why}. No entries until the next UTC day.",
                Severity.CRITICAL,
            )
    if bot.kill_switch_at is None:
        why = risk.drawdown_breached(equity=equity, peak_equity=bot.peak_equity or math.nan, limits=limits)
        if why is not None:
            services.pull_kill_switch(bot=bot, reason=why)


def _apply(bot: Bot, changed: dict[str, object]) -> None:
    if not changed:
        return
    Bot.objects.filter(pk=bot.pk).update(**changed)
    for name, value in changed.items():
        setattr(bot, name, value)


def entries_blocked(bot: Bot) -> str | None:
    """Return the account's own reason against entries, the one that a person can do most about first."""
    if bot.kill_switch_at is not None:
        return reason("KILL_SWITCH", since=bot.kill_switch_at, why=bot.kill_switch_reason)
    if bot.desired_state != DesiredState.RUN:
        return reason(DesiredState(bot.desired_state).name)
    if bot.daily_loss_hit:
        return reason("DAILY_LOSS", limit=bot.daily_loss_limit, until="next UTC day")
    return None


def close_all(bot: Bot) -> str | None:
    """Return why every position is to be closed now, or None. A bot that is stopped decides nothing."""
    if bot.desired_state == DesiredState.CLOSE_ONLY:
        return reason("CLOSE_ONLY")
    stopped = bot.desired_state == DesiredState.STOP
    if bot.kill_switch_at is not None and bot.on_kill_switch == KillPolicy.CLOSE and not stopped:
        return reason("KILL_SWITCH", since=bot.kill_switch_at, positions=bot.on_kill_switch)
    return None


def equity_point(bot: Bot, *, at: dt.datetime, balance: Balance, exposure: float, open_positions: int) -> EquityPoint:
    """Return the row of a bar. Cash is what is not tied up in positions."""
    equity = float(balance.equity)
    peak = bot.peak_equity or equity
    return EquityPoint(
        bot=bot,
        at=at,
        equity=equity,
        cash=float(balance.available),
        exposure=exposure,
        drawdown=max(0.0, 1.0 - equity / peak) if peak > 0 else 0.0,
        open_positions=open_positions,
    )


def performance_guard(promise: Promise | None) -> float:
    """Return the share of the usual size that a model's live precision leaves."""
    if promise is None:
        return 1.0
    return promise.guard
