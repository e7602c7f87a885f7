"""How an order fills against public data: `quant.fills` on an exchange's grid of lots and ticks. Pure.

A resting limit order fills only when the price trades *through* it. A stop fills at the worse of its trigger and the
bar's open.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from exchanges.port import Instrument, OrderSide, Ticker, VenueOrder
from quant import fills
from quant.candles import Candles

TAKER_FEE = Decimal(repr(fills.TAKER_FEE_BPS)) / 10_000
MAKER_FEE = Decimal(repr(fills.MAKER_FEE_BPS)) / 10_000
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
    volume = candles.volume[-fills.liquidity_bars(step_ms) :]
    return Liquidity(volume=float(volume.sum()), sigma=fills.volatility(candles.close, step_ms=step_ms))


def taker_quantity(instrument: Instrument, quantity: Decimal, liquidity: Liquidity) -> Decimal:
    """How much of `quantity` a taker gets now, on the lot grid."""
    most = instrument.quantize_quantity(Decimal(repr(fills.MAX_VOLUME_SHARE * liquidity.volume)))
    return min(quantity, most)


def taker_price(
    instrument: Instrument, ticker: Ticker, side: OrderSide, quantity: Decimal, liquidity: Liquidity
) -> Decimal:
    """Average price of a taker fill, rounded to the tick against the taker."""
    mid = 0.5 * (ticker.bid + ticker.ask)
    half_spread = 0.5 * (ticker.ask - ticker.bid) / mid
    impact = fills.impact(float(quantity), volume=liquidity.volume, sigma=liquidity.sigma)
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
        held = 1 if order.side == "sell" else -1
        price = fills.stop_price(side=held, trigger=float(order.trigger_price), opened=opened, high=high, low=low)
        return None if price is None else round_against(instrument, Decimal(repr(price)), order.side)
    if order.kind == "limit" and order.price is not None:
        held = 1 if order.side == "sell" else -1
        if fills.limit_reached(side=held, limit=float(order.price), high=high, low=low):
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
