"""The one engine: an outcome and a reason for every symbol, exits that nothing stops, entries that fail closed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.engine import BarInput, Decision, EngineSpec, EntryIntent, ExitIntent, PortfolioState, PositionState, decide
from quant.label_spec import LabelSpec
from quant.outcomes import Outcome
from quant.reasons import code_of
from quant.risk import RiskLimits
from quant.schema import FeatureSchema
from quant.timeframes import HOUR_MS

SCHEMA = FeatureSchema()
SPEC = EngineSpec(bar_ms=HOUR_MS, label=LabelSpec(profit_take=2.0, stop_loss=1.5, horizon=24))
NOW = 1_748_736_000_000
FLAT = PortfolioState(equity=10_000.0, day_start_equity=10_000.0, peak_equity=10_000.0)


def features(n: int) -> np.ndarray:
    values = np.full((n, len(SCHEMA)), 0.5, dtype=np.float32)
    values[:, SCHEMA.index("volatility_ratio")] = 1.0
    values[:, SCHEMA.index("adx_14")] = 30.0
    return values


def make_bar(symbols: tuple[str, ...] = ("A",), **changes: object) -> BarInput:
    """A bar in which every symbol would be entered long, unless changed. Scalars are repeated."""
    n = len(symbols)
    columns: dict[str, object] = {
        "close": 100.0,
        "atr_pct": 0.01,
        "volatility": 0.01,
        "side": 1,
        "probability": 0.7,
        "threshold": 0.55,
        "covered": True,
    }
    types = {"side": np.int8, "covered": np.bool_}
    refusals = changes.pop("refusals", {})
    matrix = changes.pop("features", None)
    arrays = {
        name: np.broadcast_to(np.asarray(changes.pop(name, value), dtype=types.get(name, np.float64)), (n,)).copy()
        for name, value in columns.items()
    }
    assert not changes
    return BarInput(
        open_time_ms=NOW,
        symbols=symbols,
        features=features(n) if matrix is None else matrix,
        refusals=refusals,
        **arrays,
    )


def position(symbol: str = "A", **changes: object) -> PositionState:
    base = PositionState(
        symbol=symbol,
        side=1,
        quantity=2.0,
        entry_price=100.0,
        stop_price=98.5,
        target_price=102.0,
        opened_ms=NOW - 10 * HOUR_MS,
        expires_ms=NOW + 14 * HOUR_MS,
    )
    return replace(base, **changes)


def holding(*positions: PositionState, **changes: object) -> PortfolioState:
    return replace(FLAT, positions={each.symbol: each for each in positions}, **changes)


def one(bar: BarInput, portfolio: PortfolioState = FLAT, spec: EngineSpec = SPEC) -> Decision:
    (decision,) = decide(bar=bar, portfolio=portfolio, spec=spec, schema=SCHEMA)
    return decision


# ------------------------------------------------------------------- entries
def test_a_covered_signal_above_the_threshold_is_entered_with_the_barriers_of_its_label() -> None:
    decision = one(make_bar())
    intent = decision.intent
    assert decision.outcome is Outcome.ENTER
    assert isinstance(intent, EntryIntent)
    assert (intent.side, intent.reference_price) == (1, 100.0)
    assert (intent.stop_price, intent.target_price) == (pytest.approx(98.5), pytest.approx(102.0))
    assert intent.expires_ms == NOW + HOUR_MS + 24 * HOUR_MS
    assert 0 < intent.quantity * 100.0 <= 1_000.0


def test_a_short_entry_has_its_stop_above() -> None:
    intent = one(make_bar(side=-1)).intent
    assert isinstance(intent, EntryIntent)
    assert (intent.stop_price, intent.target_price) == (pytest.approx(101.5), pytest.approx(98.0))


@pytest.mark.parametrize(
    "changes, outcome, code",
    [
        ({"side": 0}, Outcome.NO_SIGNAL, "NO_SIGNAL"),
        ({"probability": 0.5}, Outcome.REFUSED, "BELOW_THRESHOLD"),
        ({"probability": math.nan}, Outcome.REFUSED, "PROBABILITY_NOT_VALID"),
        ({"probability": 1.5}, Outcome.REFUSED, "PROBABILITY_NOT_VALID"),
        ({"threshold": math.nan}, Outcome.REFUSED, "PROBABILITY_NOT_VALID"),
        ({"covered": False}, Outcome.REFUSED, "NOT_COVERED"),
        ({"refusals": {"A": "STALE_DATA: bars_late=5"}}, Outcome.REFUSED, "BLOCKED"),
        ({"close": math.nan}, Outcome.NO_DATA, "NO_CANDLE"),
        ({"atr_pct": math.nan}, Outcome.NO_DATA, "ATR_NOT_USABLE"),
        ({"atr_pct": 0.7}, Outcome.REFUSED, "ATR_TOO_LARGE"),
        ({"volatility": math.nan}, Outcome.REFUSED, "TOO_SMALL"),
        ({"volatility": 50.0}, Outcome.REFUSED, "TOO_SMALL"),
    ],
)
def test_every_refusal_of_an_entry_has_its_reason(changes: dict, outcome: Outcome, code: str) -> None:
    decision = one(make_bar(**changes))
    assert (decision.outcome, code_of(decision.reason)) == (outcome, code)
    assert decision.intent is None


def test_a_probability_exactly_at_the_threshold_is_taken() -> None:
    assert one(make_bar(probability=0.55)).outcome is Outcome.ENTER


def test_a_refused_probability_is_shown_with_its_threshold() -> None:
    assert one(make_bar(probability=0.51)).reason == "BELOW_THRESHOLD: probability=0.51, threshold=0.55"


def test_a_missing_feature_that_kept_the_model_silent_is_named() -> None:
    matrix = features(1)
    matrix[0, SCHEMA.index("beta_168")] = np.nan
    decision = one(make_bar(features=matrix, probability=math.nan))
    assert (decision.outcome, decision.reason) == (Outcome.NO_DATA, "FEATURES_MISSING: missing=1, first=beta_168")


def test_a_regime_outside_the_bounds_is_refused() -> None:
    matrix = features(1)
    matrix[0, SCHEMA.index("adx_14")] = 1.0
    assert code_of(one(make_bar(features=matrix)).reason) == "REGIME"


def test_a_blocked_symbol_shows_the_evidence_of_its_block() -> None:
    text = "SHORT_HISTORY: have_days=12, need_days=90 | STALE_DATA: bars_late=5"
    assert one(make_bar(refusals={"A": text})).reason == (
        "BLOCKED: by=SHORT_HISTORY, have_days=12, need_days=90, also=STALE_DATA"
    )


@pytest.mark.parametrize("text", ["KILL_SWITCH: drawdown=0.2", "DAILY_LOSS: loss=0.04", "CLOSE_ONLY"])
def test_an_account_wide_stop_refuses_every_entry_by_name(text: str) -> None:
    decisions = decide(
        bar=make_bar(("A", "B")), portfolio=replace(FLAT, entries_blocked=text), spec=SPEC, schema=SCHEMA
    )
    assert [decision.reason for decision in decisions] == [text, text]


def test_a_symbol_that_cools_down_is_not_entered_and_the_others_are() -> None:
    why = "COOLDOWN: after=STOP, until=2026-01-01T04:00Z"
    cooling = replace(FLAT, cooling={"A": why, "C": why})
    bar = make_bar(("A", "B", "C"), side=[1, 1, 0])
    a, b, c = decide(bar=bar, portfolio=cooling, spec=SPEC, schema=SCHEMA)
    assert (a.outcome, a.reason, a.intent) == (Outcome.REFUSED, why, None)
    assert b.outcome == Outcome.ENTER
    assert c.outcome == Outcome.NO_SIGNAL
    (stopped,) = decide(
        bar=make_bar(), portfolio=replace(cooling, entries_blocked="KILL_SWITCH: x"), spec=SPEC, schema=SCHEMA
    )
    assert stopped.reason == "KILL_SWITCH: x", "what stops the whole account is said first"


def test_shorts_are_refused_where_they_cannot_be_sold() -> None:
    decision = one(make_bar(side=-1), spec=replace(SPEC, allow_short=False))
    assert decision.reason == "SHORT_NOT_ALLOWED"


def test_a_pending_entry_is_not_sent_twice() -> None:
    decision = one(make_bar(), replace(FLAT, pending=frozenset({"A"})))
    assert (decision.outcome, decision.reason, decision.intent) == (Outcome.HOLD, "ENTRY_PENDING", None)


def test_i11_no_symbol_is_entered_that_the_model_does_not_cover() -> None:
    symbols = tuple(f"S{i}" for i in range(20))
    covered = np.arange(20) % 3 == 0
    decisions = decide(bar=make_bar(symbols, covered=covered), portfolio=FLAT, spec=SPEC, schema=SCHEMA)
    entered = {decision.symbol for decision in decisions if decision.outcome is Outcome.ENTER}
    assert entered
    assert entered <= {symbol for symbol, is_covered in zip(symbols, covered, strict=True) if is_covered}
    assert all(d.reason == "NOT_COVERED" for d, is_covered in zip(decisions, covered, strict=True) if not is_covered)


# ------------------------------------------------------------------- limits
def test_when_limits_bind_the_highest_probability_wins_and_then_the_name() -> None:
    spec = replace(SPEC, limits=RiskLimits(max_open_positions=2))
    bar = make_bar(("D", "C", "B", "A"), probability=[0.6, 0.8, 0.6, 0.6])
    decisions = {d.symbol: d for d in decide(bar=bar, portfolio=FLAT, spec=spec, schema=SCHEMA)}
    assert [symbol for symbol, d in decisions.items() if d.outcome is Outcome.ENTER] == ["C", "A"]
    assert code_of(decisions["B"].reason) == "MAX_OPEN_POSITIONS"


def test_the_last_entry_gets_what_the_exposure_leaves_and_the_next_is_refused() -> None:
    spec = replace(SPEC, limits=RiskLimits(max_exposure_fraction=0.15, max_position_fraction=0.1))
    bar = make_bar(("A", "B", "C"), volatility=0.001)
    a, b, c = decide(bar=bar, portfolio=FLAT, spec=spec, schema=SCHEMA)
    sizes = [d.intent.quantity * 100.0 for d in (a, b) if isinstance(d.intent, EntryIntent)]
    assert sizes == [pytest.approx(1_000.0), pytest.approx(500.0)]
    assert code_of(c.reason) == "MAX_EXPOSURE"


def test_open_and_pending_positions_count_against_the_exposure() -> None:
    spec = replace(SPEC, limits=RiskLimits(max_exposure_fraction=0.1))
    held = holding(position("B", quantity=9.5), pending=frozenset({"C"}), pending_notional=50.0)
    decisions = decide(bar=make_bar(("A", "B", "C")), portfolio=held, spec=spec, schema=SCHEMA)
    assert code_of(decisions[0].reason) == "MAX_EXPOSURE"


@given(
    st.permutations(list("ABCDEFGH")),
    st.lists(st.sampled_from([0.56, 0.6, 0.9]), min_size=8, max_size=8),
    st.integers(1, 8),
)
def test_the_order_of_the_symbols_does_not_change_any_decision(
    order: list[str], probabilities: list[float], most: int
) -> None:
    spec = replace(SPEC, limits=RiskLimits(max_open_positions=most, max_exposure_fraction=0.3))
    by_symbol = dict(zip("ABCDEFGH", probabilities, strict=True))
    outcomes = []
    for symbols in (tuple("ABCDEFGH"), tuple(order)):
        bar = make_bar(symbols, probability=[by_symbol[s] for s in symbols], volatility=0.001)
        outcomes.append({d.symbol: d for d in decide(bar=bar, portfolio=FLAT, spec=spec, schema=SCHEMA)})
    assert outcomes[0] == outcomes[1]


# ------------------------------------------------------------------- exits
@pytest.mark.parametrize(
    "side, close, code",
    [
        (1, 98.5, "STOP"),
        (1, 102.1, "TARGET"),
        (1, 102.0, None),  # as for the order that rests there: the price must go through it
        (1, 100.0, None),
        (-1, 102.0, "STOP"),
        (-1, 98.4, "TARGET"),
        (-1, 98.5, None),
        (-1, 100.0, None),
    ],
)
def test_a_close_beyond_a_barrier_closes_the_position(side: int, close: float, code: str | None) -> None:
    stop, target = (98.5, 102.0) if side > 0 else (102.0, 98.5)
    held = position(side=side, stop_price=stop, target_price=target)
    decision = one(make_bar(close=close), holding(held))
    if code is None:
        assert (decision.outcome, decision.reason) == (Outcome.HOLD, "IN_POSITION")
    else:
        assert (decision.outcome, code_of(decision.reason)) == (Outcome.EXIT, code)
        assert decision.intent == ExitIntent("A", side, 2.0, decision.reason)


@pytest.mark.parametrize("bars_left, outcome", [(1, Outcome.EXIT), (2, Outcome.HOLD)])
def test_the_time_barrier_closes_at_the_close_of_its_bar(bars_left: int, outcome: Outcome) -> None:
    held = position(expires_ms=NOW + bars_left * HOUR_MS)
    assert one(make_bar(), holding(held)).outcome is outcome


def test_the_horizon_of_a_trade_is_the_horizon_of_its_label() -> None:
    intent = one(make_bar()).intent
    assert isinstance(intent, EntryIntent)
    held = position(opened_ms=NOW + HOUR_MS, expires_ms=intent.expires_ms)
    exits = [
        one(replace(make_bar(), open_time_ms=NOW + k * HOUR_MS), holding(held)).outcome is Outcome.EXIT
        for k in range(1, 26)
    ]
    assert exits.index(True) + 1 == 24


@pytest.mark.parametrize("code, outcome", [("DELISTED", Outcome.EXIT), ("STALE_DATA", Outcome.HOLD)])
def test_a_position_is_closed_when_its_symbol_is_gone_and_held_when_it_is_only_quiet(
    code: str, outcome: Outcome
) -> None:
    decision = one(make_bar(refusals={"A": f"LOW_COVERAGE: coverage=0.5 | {code}: x=1"}), holding(position()))
    assert decision.outcome is outcome


def test_an_exit_in_flight_is_not_sent_twice() -> None:
    decision = one(make_bar(close=90.0), holding(position(), exiting=frozenset({"A"})))
    assert (decision.outcome, decision.reason) == (Outcome.HOLD, "EXIT_PENDING")


def test_a_position_outside_the_bar_is_decided_too() -> None:
    decisions = decide(bar=make_bar(("A",)), portfolio=holding(position("Z"), position("Y")), spec=SPEC, schema=SCHEMA)
    assert [(d.symbol, d.reason) for d in decisions[1:]] == [
        ("Y", "IN_POSITION: candle=missing"),
        ("Z", "IN_POSITION: candle=missing"),
    ]


broken = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0])


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("atr_pct", "volatility", "probability", "threshold"), broken)
        | {"covered": st.booleans(), "side": st.sampled_from([-1, 0, 1])},
    ),
    st.booleans(),
    st.fixed_dictionaries(
        {},
        optional={
            "entries_blocked": st.just("KILL_SWITCH"),
            "equity": st.sampled_from([0.0, -5.0, math.nan, 1e4]),
            "guard": st.sampled_from([0.0, math.nan]),
            "pending": st.just(frozenset({"A"})),
            "pending_notional": st.sampled_from([0.0, 1e9, math.nan]),
            "cooling": st.just({"A": "COOLDOWN: after=STOP"}),
        },
    ),
    st.sampled_from(["stop", "target", "time", "close_all", "delisted"]),
)
def test_i20_nothing_stops_an_exit(changes: dict, nan_features: bool, account: dict, why: str) -> None:
    """Whatever is broken in the model, the features, the account or the limits: a due exit is decided."""
    held = position()
    if why == "stop":
        changes["close"] = 90.0
    elif why == "target":
        changes["close"] = 110.0
    elif why == "time":
        held = replace(held, expires_ms=NOW)
        changes["close"] = math.nan
    elif why == "close_all":
        account["close_all"] = "KILL_SWITCH: drawdown=0.2"
        changes["close"] = math.nan
    else:
        changes |= {"refusals": {"A": "DELISTED: delisted_at=2025-06-01T00:00Z"}, "close": math.nan}
    if nan_features:
        changes["features"] = np.full((1, len(SCHEMA)), np.nan, dtype=np.float32)
    decision = one(make_bar(**changes), holding(held, **account))
    assert decision.outcome is Outcome.EXIT
    assert isinstance(decision.intent, ExitIntent)
    assert decision.intent.quantity == held.quantity


# ------------------------------------------------------------------- properties
numbers = st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 0.0, 0.01, 0.6, 1.0, 100.0])


@given(
    st.lists(
        st.fixed_dictionaries(
            dict.fromkeys(("close", "atr_pct", "volatility", "probability", "threshold", "feature"), numbers)
            | {"side": st.sampled_from([-1, 0, 1]), "covered": st.booleans()}
        ),
        min_size=1,
        max_size=6,
    )
)
def test_f42_an_entry_never_comes_from_a_value_that_is_not_a_number(rows: list[dict]) -> None:
    symbols = tuple(f"S{i}" for i in range(len(rows)))
    matrix = features(len(rows))
    matrix[:, 0] = [row["feature"] for row in rows]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "feature"}
    decisions = decide(bar=make_bar(symbols, features=matrix, **columns), portfolio=FLAT, spec=SPEC, schema=SCHEMA)
    assert [d.symbol for d in decisions] == list(symbols)
    for decision, row in zip(decisions, rows, strict=True):
        assert code_of(decision.reason)
        assert (decision.intent is not None) == (decision.outcome is Outcome.ENTER)
        if isinstance(decision.intent, EntryIntent):
            used = [row[n] for n in ("close", "atr_pct", "volatility", "probability", "threshold")]
            assert all(math.isfinite(value) for value in used)
            assert not math.isinf(row["feature"])
            assert row["covered"]
            assert row["side"] != 0
            for value in (decision.intent.quantity, decision.intent.stop_price, decision.intent.target_price):
                assert math.isfinite(value)
                assert value > 0


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12), st.floats(0.0005, 0.05), st.floats(100, 1e6))
def test_entries_of_one_bar_stay_within_every_limit(
    probabilities: list[float], volatility: float, equity: float
) -> None:
    limits = RiskLimits(max_open_positions=5, max_exposure_fraction=0.35, max_position_fraction=0.1)
    symbols = tuple(f"S{i}" for i in range(len(probabilities)))
    bar = make_bar(symbols, probability=probabilities, volatility=volatility)
    portfolio = replace(FLAT, equity=equity)
    decisions = decide(bar=bar, portfolio=portfolio, spec=replace(SPEC, limits=limits), schema=SCHEMA)
    sizes = [d.intent.quantity * 100.0 for d in decisions if isinstance(d.intent, EntryIntent)]
    assert len(sizes) <= 5
    assert sum(sizes) <= 0.35 * equity * (1 + 1e-9)
    assert all(limits.min_notional * (1 - 1e-9) <= size <= 0.1 * equity * (1 + 1e-9) for size in sizes)


def test_the_same_bar_decided_twice_gives_equal_decisions() -> None:
    bar = make_bar(("A", "B", "C"), probability=[0.6, 0.5, 0.9])
    held = holding(position("B"))
    assert decide(bar=bar, portfolio=held, spec=SPEC, schema=SCHEMA) == decide(
        bar=bar, portfolio=held, spec=SPEC, schema=SCHEMA
    )


@pytest.mark.parametrize("name", ["close", "probability", "covered"])
def test_a_column_of_the_wrong_length_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        replace(make_bar(("A", "B")), **{name: np.zeros(1)})


# ------------------------------------------------------------- the same bet again
def test_a_bet_that_the_book_holds_already_is_cut_and_then_refused_and_its_hedge_is_not() -> None:
    limits = RiskLimits(
        max_correlated_fraction=0.25, max_exposure_fraction=1.0, max_position_fraction=0.1, max_open_positions=10
    )
    bar = make_bar(("A", "B", "C", "D"), side=[1, 1, 1, 1], probability=[0.9, 0.8, 0.7, 0.6], volatility=1e-4)
    spec = replace(SPEC, limits=limits)
    a, b, c, d = decide(bar=bar, portfolio=FLAT, spec=spec, schema=SCHEMA)
    sizes = [each.intent.quantity * 100.0 for each in (a, b, c) if isinstance(each.intent, EntryIntent)]
    assert sizes[:2] == [pytest.approx(1_000.0)] * 2
    assert 0 < sizes[2] < 1_000.0, "only what is left of the same bet"
    assert (d.outcome, code_of(d.reason)) == (Outcome.REFUSED, "CORRELATED_EXPOSURE")
    hedged = make_bar(("A", "B", "C", "D"), side=[1, 1, 1, -1], probability=[0.9, 0.8, 0.7, 0.6], volatility=1e-4)
    assert decide(bar=hedged, portfolio=FLAT, spec=spec, schema=SCHEMA)[3].outcome is Outcome.ENTER


def test_pending_orders_of_unknown_side_count_in_full_against_the_same_bet() -> None:
    limits = RiskLimits(max_correlated_fraction=0.25, max_position_fraction=0.1)
    pending = replace(FLAT, pending=frozenset({"B"}), pending_notional=2_600.0)
    (decision, _) = decide(
        bar=make_bar(("A", "B")), portfolio=pending, spec=replace(SPEC, limits=limits), schema=SCHEMA
    )
    assert (decision.outcome, code_of(decision.reason)) == (Outcome.REFUSED, "CORRELATED_EXPOSURE")
