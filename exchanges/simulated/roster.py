"""Who is listed on the simulated exchange, and what is odd about them.

A core of healthy symbols, plus specials that make every rule of the universe and of coverage meet its case: a gappy
series, a token swap, a late feed, a thin market, and a never-ending sequence of new listings that are delisted again.
The sequence is a function of time alone, so whatever the clock says, some symbol is a few days old and some will go
soon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

import numpy as np

from exchanges.port import Instrument
from exchanges.simulated.hashing import stream_key, uniform

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
GENESIS_DAY = 18_262
"""2020-01-01 UTC, in days since 1970: the world's first day."""

SECTORS = 6
_DROPPED_AFTER_DAYS = 60
_LONGEST_LIFE_PERIODS = 8
_CONSONANTS = "BDFGKLMNPRSTVZ"
_VOWELS = "AEIOU"


class Oddity(StrEnum):
    """What is wrong with a special symbol."""

    NONE = "none"
    GAPPY = "gappy"
    SWAPPED = "swapped"
    LATE = "late"
    THIN = "thin"


LATE_BY_MS = 8 * HOUR_MS
SWAP_PERIOD_DAYS = 300
SWAP_GAP_DAYS = 6
SWAP_FACTOR = 1000.0


@dataclass(frozen=True, slots=True)
class SymbolSpec:
    """Constant parameters of one simulated symbol. Volatilities are standard deviations of a day's log return."""

    symbol: str
    key: int
    sector: int
    market_beta: float
    sector_beta: float
    own_volatility: float
    daily_quote_volume: float
    log_price: float
    """At the listing."""
    listed_ms: int
    delisted_ms: int | None
    oddity: Oddity
    half_spread: float
    """As a fraction of the price."""
    decimals: int
    """Of the tick: a millionth of the first price or finer, so that a fall of 99 % leaves a useful grid."""

    @property
    def listed_day(self) -> int:
        return self.listed_ms // DAY_MS

    def listed_at(self, time_ms: int) -> bool:
        return self.listed_ms <= time_ms and (self.delisted_ms is None or time_ms < self.delisted_ms)

    def instrument(self, now_ms: int) -> Instrument:
        tick = Decimal(10) ** -self.decimals
        lot = Decimal(10) ** -min(max(7 - self.decimals, 0), 5)  # a lot is worth 0.1 to 1 at the first price
        known_end = self.delisted_ms if self.delisted_ms is not None and self.delisted_ms <= now_ms else None
        return Instrument(
            symbol=self.symbol,
            base=self.symbol.partition("/")[0],
            quote="USDT",
            settle="USDT",
            market_type="swap",
            tick_size=tick,
            lot_size=lot,
            min_quantity=lot,
            min_notional=Decimal(5),
            max_leverage=Decimal(25),
            listed_ms=self.listed_ms,
            delisted_ms=known_end,
            active=self.listed_at(now_ms),
        )


def core_name(index: int) -> str:
    """An invented five-letter code, unique for each index below 4900; no real coin is called so."""
    c, v = len(_CONSONANTS), len(_VOWELS)
    code = (index * 1_237) % (c * v * c * v)  # 1237 is prime to the modulus: every code once
    letters = (
        _CONSONANTS[code // (v * c * v)],
        _VOWELS[code // (c * v) % v],
        _CONSONANTS[code // v % c],
        _VOWELS[code % v],
    )
    return "".join(letters) + "X"


def _draw(key: int, count: int) -> list[float]:
    return [float(u) for u in uniform(np.array([key], np.uint64), np.arange(count, dtype=np.int64))]


def _spec(
    seed: int,
    base: str,
    *,
    listed_ms: int,
    delisted_ms: int | None = None,
    oddity: Oddity = Oddity.NONE,
    size: float | None = None,
) -> SymbolSpec:
    """Draw a symbol's parameters from its name. `size` in 0..1 ranks its turnover; None draws it."""
    key = stream_key(seed, "symbol", base)
    u = _draw(key, 8)
    rank = u[5] if size is None else size
    log_price = math.log(10.0) * (-1.0 + 4.0 * u[4])
    return SymbolSpec(
        symbol=f"{base}/USDT:USDT",
        key=key,
        sector=int(u[0] * SECTORS),
        market_beta=0.6 + 0.8 * u[1],
        sector_beta=0.5 + 0.8 * u[2],
        own_volatility=0.023 + 0.016 * u[3],
        daily_quote_volume=15_000.0 if oddity is Oddity.THIN else float(10.0 ** (6.8 + 2.2 * rank)),
        log_price=log_price,
        listed_ms=listed_ms,
        delisted_ms=delisted_ms,
        oddity=oddity,
        half_spread=2.5e-3 if oddity is Oddity.THIN else 0.5e-4 + 1.5e-4 * (1.0 - rank),
        decimals=6 - math.floor(log_price / math.log(10.0)),
    )


@dataclass(frozen=True, slots=True)
class Roster:
    """All symbols of a world. `listing_interval_days` is the mean time between two new listings."""

    seed: int
    core: int
    specials: bool = True
    listing_interval_days: int = 30

    def permanent(self) -> list[SymbolSpec]:
        """The core, listed in the world's first two years, and the odd ones that never leave."""
        found = []
        for index in range(self.core):
            name = core_name(index)
            age = _draw(stream_key(self.seed, "listing", name), 1)[0]
            found.append(_spec(self.seed, name, listed_ms=(GENESIS_DAY + int(age * 600)) * DAY_MS))
        if self.specials:
            for name, oddity in (
                ("GAPPY", Oddity.GAPPY),
                ("SWAPPED", Oddity.SWAPPED),
                ("LATE", Oddity.LATE),
                ("THIN", Oddity.THIN),
            ):
                found.append(_spec(self.seed, name, listed_ms=(GENESIS_DAY + 200) * DAY_MS, oddity=oddity, size=0.4))
        return found

    def listings(self, now_ms: int) -> list[tuple[int, SymbolSpec]]:
        """(number, spec) of the temporary symbols that are listed now, or were until at most 60 days ago."""
        if not self.specials:
            return []
        period = self.listing_interval_days
        last = (now_ms // DAY_MS - GENESIS_DAY) // period
        first = max(last - _LONGEST_LIFE_PERIODS - _DROPPED_AFTER_DAYS // period - 2, 0)
        found = ((number, self.temporary(number)) for number in range(first, last + 1))
        oldest = now_ms - _DROPPED_AFTER_DAYS * DAY_MS
        return [
            (number, spec)
            for number, spec in found
            if spec.listed_ms <= now_ms and (spec.delisted_ms is None or spec.delisted_ms > oldest)
        ]

    def temporary(self, number: int) -> SymbolSpec:
        """The listing of period `number`: its day, hour and length of life are drawn."""
        period = self.listing_interval_days
        name = f"NEW{number:03d}"
        u = _draw(stream_key(self.seed, "temporary", name), 3)
        listed = (GENESIS_DAY + number * period + int(u[0] * period)) * DAY_MS + int(u[1] * 24) * HOUR_MS
        lifetime = int((_LONGEST_LIFE_PERIODS - 2 * u[2]) * period) * DAY_MS
        return _spec(self.seed, name, listed_ms=listed, delisted_ms=listed + lifetime)
