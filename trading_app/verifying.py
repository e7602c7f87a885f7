"""Were the decisions what the stored candles say? Each is computed again by the code that training uses (I13).

Of every decision that a model was asked about: the price, the side, the probability to the last bit, and whether the
outcome fits them. What also depends on the account at that moment (sizes, limits, blocks) is not computed again.
Imports numba and LightGBM: for commands only.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coverage_app.market import candle_store
from quant.features import FeatureState, replay
from quant.outcomes import Outcome
from quant.schema import FeatureSchema
from quant.signals import primary_side
from quant.timeframes import from_ms, timeframe_ms, to_ms
from trading_app.models import Bot, Decision
from training_app import artifacts, registry
from training_app.models import ModelArtifact

LATE_CODES = frozenset({"NO_CANDLE", "FEATURES_MISSING"})
"""The bot decided without the candle. It has come since: the store knows more than the bot could."""
MOST_DIFFERENCES = 100
REPLAY_ROWS = 256
"""Bars replayed at a time before the first that is compared: their features are thrown away."""


@dataclass(slots=True)
class Verification:
    """How many decisions were compared, and the sentences about those that differ.

    ``late`` decisions belong to bars in which a candle came after its decision (F23), ``without_model`` to bars in
    which no model was loaded, ``unstored`` to bars that the store does not hold (yet).
    """

    compared: int = 0
    late: int = 0
    without_model: int = 0
    unstored: int = 0
    differences: list[str] = field(default_factory=list)


def verify_decisions(bot: Bot, start: dt.datetime, end: dt.datetime) -> Verification:
    """Compute the decisions of the bars that opened from ``start`` to ``end`` (market time, exclusive) again."""
    found = Verification()
    rows = Decision.objects.filter(bot=bot, bar_at__gte=start, bar_at__lt=end)
    found.without_model = rows.filter(artifact=None).count()
    by_artifact: dict[int, list[Decision]] = defaultdict(list)
    for row in rows.exclude(artifact=None).select_related("symbol").order_by("bar_at", "symbol__code").iterator():
        by_artifact[row.artifact_id or 0].append(row)
    for artifact in ModelArtifact.objects.filter(pk__in=by_artifact).order_by("pk"):
        _verify_artifact(bot, artifact, by_artifact[artifact.pk], found)
    return found


def _verify_artifact(bot: Bot, artifact: ModelArtifact, rows: list[Decision], found: Verification) -> None:
    model = artifacts.load(artifact)
    schema = FeatureSchema(market_wide=artifact.training_mode == registry.MULTI_SYMBOL)
    last_ms = to_ms(rows[-1].bar_at)
    panel = candle_store().read_panel(
        bot.market, artifact.timeframe, symbols=model.panel_symbols, since_ms=to_ms(artifact.data_start),
        until_ms=last_ms + timeframe_ms(artifact.timeframe),
    )  # fmt: skip
    if panel.n_times == 0:
        found.unstored += len(rows)
        return
    first = max(0, int(np.searchsorted(panel.open_time, to_ms(rows[0].bar_at))))
    state = FeatureState.create(schema, panel.n_symbols)
    for part in range(0, first, REPLAY_ROWS):  # what came before is stepped through and forgotten
        replay(state, panel.rows(part, min(part + REPLAY_ROWS, first)))
    features = replay(state, panel.rows(first, panel.n_times))
    side = primary_side(artifact.signal, features, schema)
    columns = {symbol: column for column, symbol in enumerate(panel.symbols)}
    code = model.codes_for(panel.symbols)
    late = {row.bar_at for row in rows if row.reason_code in LATE_CODES and _stored(row, panel.open_time, columns)}
    for row in rows:
        bar = int(np.searchsorted(panel.open_time, to_ms(row.bar_at)))
        column = columns.get(row.symbol.code)
        if column is None or bar >= panel.n_times or panel.open_time[bar] != to_ms(row.bar_at):
            found.unstored += 1
            continue
        if row.bar_at in late:
            found.late += 1
            continue
        close = float(panel.close[bar, column])
        if not np.isfinite(close):
            found.unstored += row.price is not None
            continue
        found.compared += 1
        again = float(
            model.predict(features[bar - first, column][np.newaxis], code[[column]])[0] if code[column] >= 0 else np.nan
        )
        for what in _differences(row, close, int(side[bar - first, column]), again, model.threshold):
            if len(found.differences) < MOST_DIFFERENCES:
                found.differences.append(f"{row.symbol.code} {row.bar_at:%Y-%m-%d %H:%M}: {what}")


def _stored(row: Decision, open_time: NDArray[np.int64], columns: dict[str, int]) -> bool:
    bar = int(np.searchsorted(open_time, to_ms(row.bar_at)))
    return row.symbol.code in columns and bar < len(open_time) and int(open_time[bar]) == to_ms(row.bar_at)


def _differences(row: Decision, close: float, side: int, probability: float, threshold: float) -> Iterator[str]:
    if row.price is not None and row.price != close:
        yield f"the bot saw the price {row.price!r}, the store says {close!r}"
    held = row.outcome in (Outcome.HOLD, Outcome.EXIT)  # there the side is that of the position
    if not held and row.side != side:
        yield f"the side was {row.side}, the candles give {side}"
    if row.probability is not None and row.probability != probability:
        yield f"the probability was {row.probability!r}, the candles give {probability!r}"
    if row.outcome == Outcome.ENTER and not probability >= threshold:
        yield f"it entered at a probability of {probability!r} below the threshold {threshold!r}"
    if row.reason_code == "BELOW_THRESHOLD" and not probability < threshold:
        yield f"it was refused below the threshold {threshold!r}, the candles give {probability!r}"


def newest_day(bot: Bot) -> dt.date | None:
    """Return the market day of the newest decision."""
    newest = Decision.objects.filter(bot=bot).order_by("-bar_at").values_list("bar_at", flat=True).first()
    return None if newest is None else from_ms(to_ms(newest)).date()
