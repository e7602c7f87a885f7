"""Reads of the money tables, for pages, the API and commands. No heavy import: the web uses this module."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from decimal import Decimal

from django.conf import settings
from django.db.models import Count, Max, Min, QuerySet

from ops_app import clock
from quant.outcomes import Outcome
from quant.promises import Calibration, LiveRecord, live_calibration, wilson_interval
from quant.risk import performance_guard
from trading_app.models import Bot, Decision, EquityPoint, Order, Position, RiskEvent
from training_app.models import ModelArtifact


@dataclass(frozen=True, slots=True)
class DecisionDay:
    """Decisions since `since`: how many of each outcome, and the codes of why not, most frequent first."""

    since: dt.datetime
    last_bar_at: dt.datetime | None
    outcomes: dict[str, int]
    why_not: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        return sum(self.outcomes.values())


@dataclass(frozen=True, slots=True)
class EquityRow:
    at: dt.datetime
    equity: float
    cash: float
    exposure: float
    drawdown: float
    open_positions: int


@dataclass(frozen=True, slots=True)
class Promise:
    """What an artifact promised (precision above its threshold on unseen data) and what its trades did live."""

    artifact_id: int
    version: int
    promised_precision: float | None
    promised_net_return: float | None
    trades: int
    wins: int
    net_pnl: Decimal
    record: LiveRecord = field(default_factory=LiveRecord)

    @property
    def live_precision(self) -> float | None:
        return self.wins / self.trades if self.trades else None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % bounds of the live precision."""
        return wilson_interval(self.wins, self.trades)

    @property
    def calibration(self) -> Calibration | None:
        return live_calibration(self.record)

    @property
    def guard(self) -> float:
        """The share of the usual size that the performance guard leaves."""
        return performance_guard(promised=self.promised_precision, trades=self.trades, wins=self.wins)


def main_bot() -> Bot | None:
    """Return the bot of the settings, else the only other one, else None."""
    bots = list(Bot.objects.order_by("id")[:50])
    return next((bot for bot in bots if bot.name == settings.BOT_NAME), bots[0] if bots else None)


def open_positions(bot: Bot) -> QuerySet[Position]:
    return Position.objects.open().filter(bot=bot).select_related("symbol", "entry_decision").order_by("symbol__code")


def open_orders(bot: Bot) -> QuerySet[Order]:
    return Order.objects.open().filter(bot=bot).select_related("symbol").order_by("id")


def closed_positions(bot: Bot, *, limit: int = 50) -> QuerySet[Position]:
    rows = Position.objects.filter(bot=bot, closed_at__isnull=False).select_related("symbol")
    return rows.order_by("-closed_at")[:limit]


def decisions_since(bot: Bot, since: dt.datetime) -> DecisionDay:
    """Count the decisions of bars opened at or after `since`: one query, whatever the number of symbols."""
    rows = (
        Decision.objects.filter(bot=bot, bar_at__gte=since)
        .values("outcome", "reason_code")
        .annotate(n=Count("id"), last=Max("bar_at"))
        .order_by()
    )
    outcomes: Counter[str] = Counter()
    why: Counter[str] = Counter()
    last: dt.datetime | None = None
    for row in rows:
        outcomes[row["outcome"]] += row["n"]
        if row["outcome"] in WHY_NOT_OUTCOMES:
            why[row["reason_code"] or row["outcome"]] += row["n"]
        last = row["last"] if last is None else max(last, row["last"])
    return DecisionDay(since=since, last_bar_at=last, outcomes=dict(outcomes), why_not=tuple(why.most_common()))


WHY_NOT_OUTCOMES = frozenset({Outcome.NO_SIGNAL.value, Outcome.REFUSED.value, Outcome.NO_DATA.value})


def decisions_today(bot: Bot, now: dt.datetime) -> DecisionDay:
    """Decisions of the UTC market day that contains `now`."""
    return decisions_since(bot, now.astimezone(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0))


def decisions_of_bar(bot: Bot, bar_at: dt.datetime) -> QuerySet[Decision]:
    return Decision.objects.filter(bot=bot, bar_at=bar_at).select_related("symbol").order_by("symbol__code")


def decisions_of_symbol(symbol_id: int, *, limit: int = 50) -> QuerySet[Decision]:
    return Decision.objects.filter(symbol_id=symbol_id).select_related("artifact").order_by("-bar_at")[:limit]


def equity_series(bot: Bot, *, since: dt.datetime | None = None, limit: int = 2000) -> list[EquityRow]:
    """Return the newest `limit` points since `since`, oldest first."""
    points = EquityPoint.objects.filter(bot=bot)
    if since is not None:
        points = points.filter(at__gte=since)
    names = ("at", "equity", "cash", "exposure", "drawdown", "open_positions")
    return [EquityRow(*row) for row in reversed(points.order_by("-at").values_list(*names)[:limit])]


def latest_equity(bot: Bot) -> EquityRow | None:
    series = equity_series(bot, limit=1)
    return series[0] if series else None


def risk_events(bot: Bot, *, limit: int = 50) -> QuerySet[RiskEvent]:
    return RiskEvent.objects.filter(bot=bot).select_related("user").order_by("-id")[:limit]


def promises(bot: Bot, *, limit: int = 10, artifact_ids: Collection[int] | None = None) -> list[Promise]:
    """Compare, for each artifact that opened positions, what it promised with what came of them. Newest first.

    With `artifact_ids`, of these only: then the positions from before the oldest of them are not looked at, so that
    what the bot asks at every bar does not cost more each month.
    """
    closed = Position.objects.filter(bot=bot, closed_at__isnull=False, foreign=False)
    if artifact_ids is None:
        closed = closed.filter(entry_decision__artifact__isnull=False)
    else:
        oldest = ModelArtifact.objects.filter(pk__in=artifact_ids).aggregate(at=Min("created_at"))["at"]
        closed = closed.filter(opened_at__gte=oldest or clock.market_now(), entry_decision__artifact__in=artifact_ids)
    sums: dict[int, _Sums] = {}
    # Summed in Python: SQLite would add Decimals as floats.
    columns = ("entry_decision__artifact_id", "realised_pnl", "fees", "entry_decision__probability")
    for artifact_id, pnl, fees, probability in closed.order_by().values_list(*columns):
        sums.setdefault(artifact_id, _Sums()).add(pnl, fees, probability)
    artifacts = ModelArtifact.objects.filter(pk__in=sorted(sums, reverse=True)[:limit]).order_by("-pk")
    return [
        Promise(
            artifact_id=pk,
            version=version,
            promised_precision=_promised(metrics, "precision"),
            promised_net_return=_promised(metrics, "net_return"),
            trades=sums[pk].trades,
            wins=sums[pk].wins,
            net_pnl=sums[pk].net,
            record=sums[pk].record(_promised(metrics, "precision")),
        )
        for pk, version, metrics in artifacts.values_list("pk", "version", "metrics")
    ]


@dataclass(slots=True)
class _Sums:
    """The closed trades of a model, added up."""

    trades: int = 0
    wins: int = 0
    net: Decimal = Decimal(0)
    asked: int = 0
    asked_wins: int = 0
    probability: float = 0.0
    variance: float = 0.0

    def add(self, pnl: Decimal, fees: Decimal, probability: float | None) -> None:
        won = pnl > fees
        self.trades += 1
        self.wins += won
        self.net += pnl - fees
        if probability is not None:
            self.asked += 1
            self.asked_wins += won
            self.probability += probability
            self.variance += probability * (1.0 - probability)

    def record(self, promised: float | None) -> LiveRecord:
        return LiveRecord(
            self.trades, self.wins, promised, self.asked, self.asked_wins, self.probability, self.variance
        )


def live_records(artifact_ids: Collection[int]) -> dict[int, LiveRecord]:
    """Return the closed trades of these artifacts by the main bot, for the watch of the active models."""
    bot = main_bot()
    if bot is None or not artifact_ids:
        return {}
    found = promises(bot, limit=len(artifact_ids), artifact_ids=artifact_ids)
    return {each.artifact_id: each.record for each in found}


def _promised(metrics: object, name: str) -> float | None:
    """Read a number of the test window (`quant.pipeline.train`): the only one that the model had no part in."""
    window = metrics.get("test") if isinstance(metrics, dict) else None
    value = window.get(name) if isinstance(window, dict) else None
    return float(value) if isinstance(value, int | float) else None


def open_position_codes(market: str) -> set[str]:
    """Return the codes in which a bot of ours has a position open: they stay in the universe until it is closed."""
    # By bot, which the index of open positions begins with: by market, SQLite walks through all positions of ever.
    rows = Position.objects.open().filter(bot__in=Bot.objects.values("pk"), foreign=False)
    return {code for of, code in rows.values_list("symbol__market", "symbol__code") if of == market}
