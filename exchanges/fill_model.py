"""How an order fills against public data: the one fill model of simulated, replayed and paper trading. Pure.

A taker pays mid x (1 +- (half spread + impact)), impact = 0.7 sigma sqrt(quantity / volume) (the square-root law),
and gets at most 10 % of the volume. A resting limit order fills only when the price trades *through* it. A stop fills
at the worse of its trigger and the bar's open. Volume and sigma are those of the last hour, or of one bar if bars are
longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

import numpy as np

from exchanges.port import Instrument, OrderSide, Ticker, VenueOrder
from quant.candles import Candles

TAKER_FEE = Decimal("0.00055")
MAKER_FEE = Decimal("0.0002")
MAX_VOLUME_SHARE = 0.10
IMPACT_COEFFICIENT = 0.7
LIQUIDITY_WINDOW_MS = 3_600_000
VOLATILITY_BARS = 24
_FEE_STEP = Decimal("1e-8")
_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class Liquidity:
    """What a taker meets: `volume` (base units) and `sigma` (log return) of the same window."""

    volume: float
    sigma: float


def measure_liquidity(candles: Candles, step_ms: int) -> Liquidity:
    """Liquidity from the latest closed candles; nothing trades if there are none."""
    if not len(candles):
        return Liquidity(volume=0.0, sigma=0.0)
    bars = max(LIQUIDITY_WINDOW_MS // step_ms, 1)
    returns = np.diff(np.log(candles.close))
    sigma = float(np.sqrt(np.mean(returns**2))) if len(returns) else 0.0
    return Liquidity(volume=float(candles.volume[-bars:].sum()), sigma=sigma * bars**0.5)


def taker_quantity(instrument: Instrument, quantity: Decimal, liquidity: Liquidity) -> Decimal:
    """How much of `quantity` a taker gets now, on the lot grid."""
    most = instrument.quantize_quantity(Decimal(repr(MAX_VOLUME_SHARE * liquidity.volume)))
    return min(quantity, most)


def taker_price(
    instrument: Instrument, ticker: Ticker, side: OrderSide, quantity: Decimal, liquidity: Liquidity
) -> Decimal:
    """Average price of a taker fill, rounded to the tick against the taker."""
    mid = 0.5 * (ticker.bid + ticker.ask)
    half_spread = 0.5 * (ticker.ask - ticker.bid) / mid
    impact = IMPACT_COEFFICIENT * liquidity.sigma * (float(quantity) / liquidity.volume) ** 0.5
    sign = 1.0 if side == "buy" else -1.0
    return round_against(instrument, Decimal(repr(mid * (1.0 + sign * (half_spread + impact)))), side)


def round_against(instrument: Instrument, price: Decimal, side: OrderSide) -> Decimal:
    """Round to the tick grid, up for a buyer and down for a seller, never to zero."""
    rounding = ROUND_CEILING if side == "buy" else ROUND_FLOOR
    ticks = (price / instrument.tick_size).to_integral_value(rounding=rounding)
    return max(ticks, Decimal(1)) * instrument.tick_size


def resting_price(instrument: Instrument, order: VenueOrder, opened: float, high: float, low: float) -> Decimal | None:
    """Price at which a resting order fills in a bar, or None if the bar does not reach it."""
    if order.kind == "stop_market" and order.trigger_price is not None:
        trigger = float(order.trigger_price)
        if order.side == "sell" and low <= trigger:
            return round_against(instrument, Decimal(repr(min(trigger, opened))), "sell")
        if order.side == "buy" and high >= trigger:
            return round_against(instrument, Decimal(repr(max(trigger, opened))), "buy")
    if order.kind == "limit" and order.price is not None:
        limit = float(order.price)
        if (order.side == "buy" and low < limit) or (order.side == "sell" and high > limit):
            return order.price
    return None


def fee_of(price: Decimal, quantity: Decimal, *, maker: bool) -> Decimal:
    """Trading fee in quote units, rounded up to 1e-8."""
    rate = MAKER_FEE if maker else TAKER_FEE
    return (price * quantity * rate).quantize(_FEE_STEP, rounding=ROUND_CEILING)


@dataclass(frozen=True, slots=True)
class Holding:
    """A position in base units (signed) with its average entry price."""

    quantity: Decimal = _ZERO
    entry_price: Decimal = _ZERO

    def after(self, side: OrderSide, quantity: Decimal, price: Decimal) -> Holding:
        """The holding after a trade: averaging in, reducing, or turning round."""
        signed = quantity if side == "buy" else -quantity
        total = self.quantity + signed
        if total == 0:
            return Holding()
        if self.quantity == 0 or (self.quantity > 0) != (total > 0):
            return Holding(total, price)
        if abs(total) < abs(self.quantity):
            return Holding(total, self.entry_price)
        return Holding(total, (self.quantity * self.entry_price + signed * price) / total)
