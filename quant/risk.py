"""Limits of an account. Entries only: nothing in this module can stop an exit (I20)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from quant.reasons import code_of, reason
from quant.timeframes import DAY_MS

GUARD_MIN_TRADES = 20
GUARD_HALF, GUARD_STOP = 2.0, 3.0
"""Standard deviations below the promise at which new positions are halved, and stopped."""
CALM_CORRELATION, CRISIS_CORRELATION = 0.4, 0.9
"""Between which the mean pairwise correlation of a market's symbols is taken to lie. Measured, weekly, on hourly
returns: 39 perpetuals of Binance, 143 weeks, 0.38 to 0.86, median 0.65; 20 of Hyperliquid, 45 weeks, 0.40 to 0.83."""

MOST_COOLDOWN_BARS = 1000
TAKEN_BY_THE_VENUE = frozenset({"LIQUIDATION", "ADL", "VANISHED"})
STOPPED = frozenset({"STOP", "STOP_MISSING"})
"""`STOP_MISSING`: no stop could be placed, as its price was passed already or the exchange refused it."""
TAKEN_COOLDOWN_MS = DAY_MS
"""How long nothing is opened in a symbol whose position the exchange took away: something was badly wrong there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskLimits:
    """Limits as fractions of equity, except counts, leverage and the quote currency of ``min_notional``.

    ``max_exposure_fraction`` bounds the gross notional of all positions and pending entries against equity;
    ``max_leverage`` bounds the same sum and is the hard stop behind it, since it is also what the venue is told.
    ``max_correlated_fraction`` bounds what is left of it after diversification (`CorrelatedBook.exposure`): it can only
    allow less than the gross limit, never more. ``cooldown_bars`` is for how many bars, that of the stop included, a
    symbol is not entered after its stop was hit; 0: it may be at once.
    """

    max_leverage: float = 2.0
    max_position_fraction: float = 0.10
    max_exposure_fraction: float = 1.0
    max_correlated_fraction: float = 1.0
    max_open_positions: int = 10
    daily_loss_fraction: float = 0.03
    max_drawdown_fraction: float = 0.15
    min_notional: float = 10.0
    cooldown_bars: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "cooldown_bars" and not value > 0:  # also refuses NaN
                raise ValueError(f"{field.name} is {value}; a risk limit must be positive")
        if not 0 <= self.cooldown_bars <= MOST_COOLDOWN_BARS:
            raise ValueError(f"cooldown_bars is {self.cooldown_bars}; it must be from 0 to {MOST_COOLDOWN_BARS}")
        for name in ("daily_loss_fraction", "max_drawdown_fraction"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a fraction of equity and must be below 1")

    @property
    def exposure_fraction(self) -> float:
        """The binding one of exposure and leverage."""
        return min(self.max_exposure_fraction, self.max_leverage)


def entry_headroom(*, equity: float, exposure: float, limits: RiskLimits) -> float:
    """Return the largest notional (quote currency, >= 0) that a new position may have."""
    by_position = limits.max_position_fraction * equity
    by_exposure = limits.exposure_fraction * equity - exposure
    return max(0.0, min(by_position, by_exposure))


def check_slots(*, equity: float, open_positions: int, limits: RiskLimits) -> str | None:
    """Return why no entry of any size is allowed, or None: the part of `check_entry` that asks nothing about it."""
    if not equity > 0:
        return reason("NO_EQUITY", equity=equity)
    if open_positions >= limits.max_open_positions:
        return reason("MAX_OPEN_POSITIONS", open=open_positions, limit=limits.max_open_positions)
    return None


def check_entry(
    *, notional: float, equity: float, exposure: float, open_positions: int, limits: RiskLimits
) -> str | None:
    """Return why an entry of this notional is not allowed, or None. ``exposure`` is gross and without the entry.

    Fails closed: a value that is not a number is refused.
    """
    refusal = check_slots(equity=equity, open_positions=open_positions, limits=limits)
    if refusal is not None:
        return refusal
    slack = 1.0 + 1e-9  # a notional that was capped to a limit is within it, whatever the last bit says
    if not exposure + notional <= limits.max_leverage * equity * slack:
        return reason("MAX_LEVERAGE", leverage=(exposure + notional) / equity, limit=limits.max_leverage)
    if not exposure + notional <= limits.max_exposure_fraction * equity * slack:
        return reason("MAX_EXPOSURE", exposure=(exposure + notional) / equity, limit=limits.max_exposure_fraction)
    if not notional <= limits.max_position_fraction * equity * slack:
        return reason("MAX_POSITION", fraction=notional / equity, limit=limits.max_position_fraction)
    if not notional >= limits.min_notional:
        return reason("TOO_SMALL", notional=notional, min_notional=limits.min_notional)
    return None


@dataclass(slots=True)
class CorrelatedBook:
    """What is held, as one number that knows that symbols of one market move together. Quote currency.

    The exposure is sqrt(w' C w) with w the signed notionals and C the constant-correlation matrix (Elton and Gruber,
    1973; the target that Ledoit and Wolf, 2004, "Honey, I shrunk the sample covariance matrix", shrink towards), that
    is, shrunk all the way: a bar brings no returns of what is held, in a backtest as little as live, and one number is
    what forty symbols and a week of candles can tell. The worse of a calm and a crisis correlation counts: in a crisis
    longs add up, in calm times a short hedges a long less than it seems to.

    It is never above the gross exposure, and never below what is left of it if all were independent. ``unsided`` is
    exposure whose side is not known (pending orders): it counts in full, which bounds every side that it may turn out
    to have (a norm obeys the triangle inequality).
    """

    net: float = 0.0
    squares: float = 0.0
    unsided: float = 0.0

    def add(self, *, side: int, notional: float) -> None:
        """Count a position or an entry that was granted. ``side`` +1 or -1, ``notional`` >= 0."""
        self.net += side * notional
        self.squares += notional * notional

    def exposure(self, *, side: int = 1, notional: float = 0.0) -> float:
        """Return the exposure with one more position of ``notional`` on ``side``; NaN when a number in it is NaN."""
        net, squares = self.net + side * notional, self.squares + notional * notional
        if math.isnan(net) or math.isnan(squares):
            return math.nan  # max() would drop it
        worst = max((1.0 - rho) * squares + rho * net * net for rho in (CALM_CORRELATION, CRISIS_CORRELATION))
        return math.sqrt(worst) + self.unsided

    def headroom(self, *, side: int, equity: float, limits: RiskLimits) -> float:
        """Return the largest notional (>= 0) of a new position on ``side``; 0.0 when nothing is known to fit.

        The larger root of (1 - rho) (squares + x^2) + rho (net + side x)^2 = room^2, the smaller one of both rho.
        """
        room = limits.max_correlated_fraction * equity - self.unsided
        most = math.inf
        for rho in (CALM_CORRELATION, CRISIS_CORRELATION):
            middle = -rho * side * self.net
            rest = room * room - (1.0 - rho) * self.squares - rho * self.net * self.net
            inside = middle * middle + rest
            if not (room > 0 and inside >= 0):  # also refuses NaN
                return 0.0
            most = min(most, middle + math.sqrt(inside))
        return max(0.0, most)


def check_correlated(
    *, book: CorrelatedBook, side: int, notional: float, equity: float, limits: RiskLimits
) -> str | None:
    """Return why a position more would be too much of the same bet, or None. NaN anywhere refuses."""
    correlated, most = book.exposure(side=side, notional=notional), limits.max_correlated_fraction * equity
    if correlated <= most * (1.0 + 1e-9):
        return None
    return reason(
        "CORRELATED_EXPOSURE", exposure=correlated / equity if equity > 0 else math.nan,
        limit=limits.max_correlated_fraction, net=book.net / equity if equity > 0 else math.nan,
    )  # fmt: skip


def cooldown_end_ms(*, cause: str, closed_ms: int, bar_ms: int, limits: RiskLimits) -> int:
    """Return the open time of the first bar at whose close a symbol may be entered again; 0: it was free all along.

    ``cause`` is why its position was closed, ``CODE: key=value``, and ``closed_ms`` when. After a stop, the signals of
    the next bars are of a move that went against the last one; the bot and a backtest wait equally long.
    """
    code, bar = code_of(cause), closed_ms // bar_ms
    wait_ms = TAKEN_COOLDOWN_MS if code in TAKEN_BY_THE_VENUE else 0
    bars = max(limits.cooldown_bars if code in STOPPED or wait_ms else 0, -(-wait_ms // bar_ms))
    return (bar + bars) * bar_ms if bars else 0


def daily_loss_breached(*, equity: float, day_start_equity: float, limits: RiskLimits) -> str | None:
    """Return the reason when the loss since the start of the UTC day is at its limit or unknown, else None."""
    loss = 1.0 - equity / day_start_equity if day_start_equity > 0 else float("nan")
    if loss < limits.daily_loss_fraction:
        return None
    return reason("DAILY_LOSS", loss=loss, limit=limits.daily_loss_fraction)


def drawdown_breached(*, equity: float, peak_equity: float, limits: RiskLimits) -> str | None:
    """Return the reason when the fall from the highest equity is at its limit or unknown, else None."""
    drawdown = 1.0 - equity / peak_equity if peak_equity > 0 else float("nan")
    if drawdown < limits.max_drawdown_fraction:
        return None
    return reason("DRAWDOWN", drawdown=drawdown, limit=limits.max_drawdown_fraction)


def performance_guard(*, promised: float | None, trades: int, wins: int) -> float:
    """Return the share of the usual size while live precision falls short of what the model promised.

    Wins of n independent trades with precision p have the standard deviation sqrt(n p (1 - p)): two below the promise
    is 1 in 44 by luck, three 1 in 740.
    """
    if promised is None or trades < GUARD_MIN_TRADES:
        return 1.0
    deviation = math.sqrt(trades * promised * (1.0 - promised))
    if deviation <= 0:
        return 1.0
    shortfall = (trades * promised - wins) / deviation
    if shortfall >= GUARD_STOP:
        return 0.0
    return 0.5 if shortfall >= GUARD_HALF else 1.0
