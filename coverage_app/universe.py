"""Which symbols belong to the universe: a pure choice from what the exchange lists, by the settings' rules."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from coverage_app.exceptions import UniverseError
from exchanges.port import Instrument, Ticker
from quant.policy import DAY_MS
from quant.reasons import code_of, reason
from quant.timeframes import from_ms

KEEP = 0.8
"""A symbol that is in may be a fifth worse than one that wants in, so that it does not leave and return every hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UniverseRules:
    """What the settings ask of a symbol. `symbols` is the list of a fixed universe; None: choose by the other rules."""

    symbols: tuple[str, ...] | None = None
    exclude: frozenset[str] = frozenset()
    min_volume: float = 0.0
    max_spread_bps: float = 10_000.0
    min_age_days: float = 0.0
    max_symbols: int = 500
    max_rotation: float = 1.0
    """Share of the universe that may leave at one refresh by volume, spread or rank; at least one symbol may."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """What becomes of a choice: why each symbol is not in ("" if it is), and which stay although the rules say no."""

    why: dict[str, str]
    held: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = []
        if self.held:
            said.append(f"{len(self.held)} stay until their position is closed, like {self.held[0]}")
        if self.waiting:
            said.append(f"{len(self.waiting)} leave at the next refreshes, like {self.waiting[0]}")
        return ", ".join(said)


ROTATING = frozenset({"VOLUME_TOO_LOW", "SPREAD_TOO_WIDE", "RANK_TOO_LOW", "NO_TICKER", "NO_PRICE"})
"""Reasons of the moment. The others (ended, excluded, unreadable) are facts, and hold at once."""


def spread_bps(ticker: Ticker) -> float | None:
    """Return the spread in basis points of the middle price; None where there is no price on one of the sides."""
    if not 0 < ticker.bid <= ticker.ask:
        return None
    return (ticker.ask - ticker.bid) / ((ticker.ask + ticker.bid) / 2) * 10_000


def choose(
    instruments: Iterable[Instrument],
    tickers: Mapping[str, Ticker],
    rules: UniverseRules,
    *,
    now_ms: int,
    inside: Collection[str] = frozenset(),
    known: Collection[str] = frozenset(),
) -> dict[str, str]:
    """Return, per instrument, why it is not in the universe; "" if it is.

    `inside` is the present universe (see KEEP), `known` every code that was ever listed. Raises UniverseError for a
    fixed list with a code that nobody ever listed.
    """
    listed = {instrument.symbol: instrument for instrument in instruments}
    if rules.symbols is not None:
        _check_known(rules.symbols, listed.keys() | set(known))
    why = {
        code: _why_ended(instrument, now_ms) or _why_not(instrument, tickers.get(code), rules, now_ms, code in inside)
        for code, instrument in listed.items()
    }
    if rules.symbols is None:
        _cut(why, tickers, rules, inside)
    return why


def rotate(
    why: Mapping[str, str],
    tickers: Mapping[str, Ticker],
    rules: UniverseRules,
    *,
    inside: Collection[str],
    held: Collection[str] = frozenset(),
) -> Rotation:
    """Return the choice `why` with few changes at a time: the thinnest leave first, and none that is `held`.

    A symbol is held while a position is open in it: its model and its candles are needed until the exit. Who wants in
    waits until there is a place, the largest volume first.
    """
    if rules.symbols is not None:  # a list is a person's word
        return Rotation(dict(why))

    def volume(code: str) -> tuple[float, str]:
        return (tickers[code].quote_volume_24h if code in tickers else 0.0, code)

    leaving = sorted((code for code in inside if code_of(why.get(code, "")) in ROTATING), key=volume)
    kept = tuple(code for code in leaving if code in held)
    free = [code for code in leaving if code not in held]
    waiting = tuple(free[max(1, int(rules.max_rotation * len(inside))) :])
    result = {**why, **dict.fromkeys((*kept, *waiting), "")}
    entering = sorted((code for code, text in result.items() if not text and code not in inside), key=volume)
    places = max(rules.max_symbols - sum(result.get(code, "gone") == "" for code in inside), 0)
    for code in entering[: max(len(entering) - places, 0)]:
        result[code] = reason("NO_PLACE_YET", places=rules.max_symbols, stay=len(kept) + len(waiting))
    return Rotation(result, kept, waiting)


def explain_empty(why: Mapping[str, str], rules: UniverseRules, market: str) -> str:
    """Return the error of a universe without a symbol: the value, the rule and the fix."""
    if not why:
        return (
            f"the exchange lists no instrument at all for EXCHANGE_MARKET={market!r}; check EXCHANGE, EXCHANGE_MARKET, "
            "and REPLAY_FROM if it is a replay"
        )
    counts = ", ".join(f"{count} {code}" for code, count in Counter(map(code_of, why.values())).most_common())
    if rules.symbols is not None:
        return (
            f"UNIVERSE_SYMBOLS={','.join(rules.symbols)}: none of them can be traded now ({counts}); "
            "name at least one active symbol"
        )
    return (
        f"no symbol of {market} passes the rules ({counts}): UNIVERSE_MIN_VOLUME={rules.min_volume:g}, "
        f"UNIVERSE_MAX_SPREAD_BPS={rules.max_spread_bps:g}, UNIVERSE_MIN_AGE_DAYS={rules.min_age_days:g}, "
        f"{len(rules.exclude)} in UNIVERSE_EXCLUDE; at least one must: loosen the rule that stops most"
    )


def _check_known(wanted: Iterable[str], known: Collection[str]) -> None:
    problems = []
    for code in wanted:
        if code not in known:
            near = difflib.get_close_matches(code, sorted(known), n=3, cutoff=0.4)
            problems.append(
                f"{code!r} is not listed ({'did you mean ' + ', '.join(near) if near else 'nothing is near'})"
            )
    if problems:
        raise UniverseError(f"UNIVERSE_SYMBOLS: {'; '.join(problems)}. Use ccxt's unified codes, like BTC/USDT:USDT")


def _why_ended(instrument: Instrument, now_ms: int) -> str:
    if instrument.delisted_ms is not None and instrument.delisted_ms <= now_ms:
        return reason("DELISTED", at=from_ms(instrument.delisted_ms))
    return "" if instrument.active else reason("INACTIVE", why="the exchange has suspended trading")


def _why_not(instrument: Instrument, ticker: Ticker | None, rules: UniverseRules, now_ms: int, is_in: bool) -> str:
    if instrument.trouble:
        return reason("UNREADABLE", why=instrument.trouble)
    if rules.symbols is not None:
        return "" if instrument.symbol in rules.symbols else reason("NOT_IN_LIST", setting="UNIVERSE_SYMBOLS")
    if instrument.symbol in rules.exclude:
        return reason("EXCLUDED", setting="UNIVERSE_EXCLUDE")
    if ticker is None:
        return reason("NO_TICKER", why="the exchange gives no price")
    slack = KEEP if is_in else 1.0
    if ticker.quote_volume_24h < rules.min_volume * slack:
        return reason("VOLUME_TOO_LOW", volume=ticker.quote_volume_24h, need=rules.min_volume)
    spread = spread_bps(ticker)
    if spread is None:
        return reason("NO_PRICE", bid=ticker.bid, ask=ticker.ask)
    if spread > rules.max_spread_bps / slack:
        return reason("SPREAD_TOO_WIDE", spread_bps=spread, allowed=rules.max_spread_bps)
    if rules.min_age_days and instrument.listed_ms is not None:
        age = (now_ms - instrument.listed_ms) / DAY_MS
        if age < rules.min_age_days:
            return reason("TOO_YOUNG", age_days=age, need=rules.min_age_days)
    return ""


def _cut(why: dict[str, str], tickers: Mapping[str, Ticker], rules: UniverseRules, inside: Collection[str]) -> None:
    """Keep the `max_symbols` with the largest volume; those that are in count a little more."""

    def weight(code: str) -> tuple[float, str]:
        return (tickers[code].quote_volume_24h / (KEEP if code in inside else 1.0), code)

    ranked = sorted((code for code, text in why.items() if not text), key=weight, reverse=True)
    for rank, code in enumerate(ranked[rules.max_symbols :], start=rules.max_symbols + 1):
        why[code] = reason("RANK_TOO_LOW", rank=rank, places=rules.max_symbols)
