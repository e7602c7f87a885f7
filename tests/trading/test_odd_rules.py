"""Market rules that are missing, 0 or nonsense refuse the entry with a reason; they break nothing else."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from exchanges.order_rules import check_instrument
from exchanges.port import Instrument, OrderRequest, Rejected
from quant.engine import EntryIntent
from tests.trading.conftest import World
from trading_app import deciding
from trading_app.choices import OrderPurpose
from trading_app.models import Bot, Decision, Order, Position

GOOD = Instrument(
    symbol="BTC/USDT:USDT", base="BTC", quote="USDT", settle="USDT", market_type="swap", tick_size=Decimal("0.1"),
    lot_size=Decimal("0.001"), min_quantity=Decimal("0.001"), min_notional=Decimal(5), max_leverage=Decimal(100),
    listed_ms=None, delisted_ms=None, active=True,
)  # fmt: skip
ODD: list[tuple[str, Any]] = [
    (name, value)
    for name in ("tick_size", "lot_size")
    for value in (Decimal(0), Decimal("NaN"), Decimal("-0.1"), Decimal("Infinity"), None, "0.1")
] + [("min_quantity", Decimal("NaN")), ("min_notional", None), ("min_notional", Decimal("sNaN")), ("max_leverage", 0)]
INTENT = EntryIntent(
    symbol=GOOD.symbol, side=1, quantity=0.5, reference_price=100.0, stop_price=95.0, target_price=110.0, expires_ms=1
)


def test_good_rules_have_no_flaw() -> None:
    assert GOOD.flaw == ""
    assert not isinstance(deciding.entry_order(INTENT, "why", GOOD), str)


@pytest.mark.parametrize("name, value", ODD)
def test_an_entry_by_odd_rules_is_refused_with_the_rule_and_an_exit_is_not(name: str, value: Any) -> None:
    odd = replace(GOOD, **{name: value})
    assert deciding.entry_order(INTENT, "why", odd) == f"BAD_RULES: symbol={GOOD.symbol}, {name}={value!s}"
    entry = OrderRequest("ours1", GOOD.symbol, "buy", Decimal("0.5"))
    refusal = check_instrument(entry, odd, Decimal(100))
    assert isinstance(refusal, Rejected)
    assert refusal.code == "BAD_RULES"
    assert f"{name}={value!s}" in refusal.reason
    assert check_instrument(replace(entry, side="sell", reduce_only=True), odd, Decimal(100)) is None


@pytest.mark.django_db
def test_i20_a_bar_with_one_symbol_of_odd_rules_is_decided_and_its_position_is_closed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = type(world.data).instruments
    odd: dict[str, Any] = {}

    def instruments(data: Any) -> list[Instrument]:
        return [replace(each, **odd.get(each.symbol, {})) for each in good(data)]

    class Data:
        """The public data of the bot; the exchange itself has good rules."""

        def __getattr__(self, name: str) -> Any:
            return getattr(world.data, name)

        def instruments(self) -> list[Instrument]:
            return instruments(world.data)

    runner = world.runner(data=Data())
    odd.update({code: {"tick_size": Decimal(0)} for code in world.codes})
    world.pass_bars(runner, 30)
    refused = Decision.objects.filter(reason_code="BAD_RULES")
    assert refused.exists()
    assert refused[0].reason.endswith("tick_size=0")
    assert not Order.objects.exists()
    odd.clear()
    world.until_entry(runner, most=200)
    position = Position.objects.open().latest("id")
    odd[position.symbol.code] = {"tick_size": Decimal(0), "lot_size": Decimal("NaN")}
    stop = Order.objects.get(position=position, purpose=OrderPurpose.STOP)
    world.matching.cancel(position.symbol.code, stop.client_order_id or "")
    world.pass_bars(runner, 1)
    stops = Order.objects.filter(position=position, purpose=OrderPurpose.STOP)
    assert stops.count() == 2, "a stop is placed by the price that is known"
    Bot.objects.update(desired_state="close_only")
    world.pass_bars(runner, 2)
    position.refresh_from_db()
    assert position.closed_at is not None
