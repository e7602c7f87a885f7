"""Bybit v5's private endpoints. Each takes the parameters and returns the answer's `result`; refusals are raised."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tests.bybit import keys
from tests.bybit.account import MAINTENANCE_RATE
from tests.bybit.checks import RefusedError
from tests.bybit.engine import BybitExchange
from tests.bybit.records import SHORT_LIVED, ZERO, Execution, Order, Position, text

Params = dict[str, Any]
_DAY_MS = 86_400_000
_WEEK_MS = 7 * _DAY_MS


class PrivateEndpoints:
    """What the owner of the key may ask (`reads`) and do (`writes`). `stamp_ms` of a write is its request's time."""

    def __init__(self, engine: BybitExchange, key: keys.ApiKey) -> None:
        self._engine = engine
        self._key = key
        self.reads: dict[str, Callable[[Params], Any]] = {
            "/v5/user/query-api": lambda _: keys.permissions(self._key, engine.now_ms()),
            "/v5/account/info": self.account_info,
            "/v5/account/wallet-balance": self.wallet,
            "/v5/account/fee-rate": self.fee_rate,
            "/v5/asset/coin/query-info": self.coins,
            "/v5/order/realtime": self.realtime,
            "/v5/order/history": self.history,
            "/v5/execution/list": self.executions,
            "/v5/position/list": self.positions,
        }
        self.writes: dict[str, Callable[[Params, int], Any]] = {
            "/v5/order/create": self.create,
            "/v5/order/cancel": lambda params, _: _ids(engine.cancel(params)),
            "/v5/order/cancel-all": self.cancel_all,
            "/v5/order/amend": lambda params, _: _ids(engine.amend(params)),
            "/v5/position/set-leverage": self.set_leverage,
            "/v5/position/trading-stop": self.trading_stop,
            "/v5/position/switch-mode": self.switch_mode,
            "/v5/position/switch-isolated": self.switch_isolated,
            "/v5/account/set-margin-mode": self.margin_mode,
        }

    # -------------------------------------------------------------------- writes
    def create(self, params: Params, stamp_ms: int) -> dict[str, str]:
        """Ids only: what became of the order must be read."""
        now = self._engine.now_ms()
        attempt = {
            "link_id": str(params.get("orderLinkId") or ""), "symbol": params.get("symbol"), "time_ms": now,
            "request_ms": stamp_ms, "age_ms": now - stamp_ms, "code": 0, "order_id": "",
        }  # fmt: skip
        try:
            order = self._engine.create(params, request_ms=stamp_ms)
            attempt["order_id"] = order.order_id
            return _ids(order)
        except RefusedError as refusal:
            attempt["code"] = refusal.code
            raise
        finally:
            self._engine.store.put_attempt(attempt)

    def cancel_all(self, params: Params, stamp_ms: int) -> dict[str, Any]:
        return {"list": [_ids(order) for order in self._engine.cancel_all(params)], "success": "1"}

    def set_leverage(self, params: Params, stamp_ms: int) -> dict[str, Any]:
        self._engine.set_leverage(params)
        return {}

    def trading_stop(self, params: Params, stamp_ms: int) -> dict[str, Any]:
        self._engine.trading_stop(params)
        return {}

    def switch_mode(self, params: Params, stamp_ms: int) -> dict[str, Any]:
        if str(params.get("mode")) != "0":
            raise RefusedError(110029, "Hedge mode is not available for this symbol")
        raise RefusedError(110025, "Position mode is not modified")

    def switch_isolated(self, params: Params, stamp_ms: int) -> dict[str, Any]:
        raise RefusedError(100028, "The API cannot be accessed by unified account users.")

    def margin_mode(self, params: Params, stamp_ms: int) -> dict[str, Any]:
        """Cross or isolated. Isolated changes what is told of it only: liquidation stays that of the whole account."""
        wanted = params.get("setMarginMode")
        if wanted not in ("REGULAR_MARGIN", "ISOLATED_MARGIN"):
            raise RefusedError(110073, "Set margin mode failed: REGULAR_MARGIN and ISOLATED_MARGIN are served here")
        self._engine.store.put_state("margin_mode", wanted)
        return {"reasons": []}

    # --------------------------------------------------------------------- reads
    def account_info(self, params: Params) -> dict[str, Any]:
        return {
            "marginMode": self._margin_mode(), "updatedTime": "1697078946000", "unifiedMarginStatus": 5,
            "dcpStatus": "OFF", "timeWindow": 0, "smpGroup": 0, "isMasterTrader": False, "spotHedgingStatus": "OFF",
        }  # fmt: skip

    def _margin_mode(self) -> str:
        return str(self._engine.store.state.get("margin_mode", "REGULAR_MARGIN"))

    def wallet(self, params: Params) -> dict[str, Any]:
        """As the unified account answers since 2025: `availableToWithdraw` is empty, use totalAvailableBalance."""
        if params.get("accountType") != "UNIFIED":
            raise RefusedError(10001, "accountType only support UNIFIED.")
        account = self._engine.account
        held = account.held()
        equity, wallet = account.equity(), account.wallet
        margin = sum((account.position_margin(each) for each in held), ZERO)
        orders, least = account.order_margin(), account.maintenance()
        upl = equity - wallet
        isolated = self._margin_mode() == "ISOLATED_MARGIN"
        rate = text((least / equity).quantize(MAINTENANCE_RATE / 100)) if equity > 0 else "1"
        coin = {
            "coin": "USDT", "equity": text(equity), "usdValue": text(equity), "walletBalance": text(wallet),
            "locked": "0", "spotHedgingQty": "0", "borrowAmount": "0", "availableToBorrow": "",
            "availableToWithdraw": "", "accruedInterest": "0", "totalOrderIM": text(orders),
            "totalPositionIM": text(margin), "totalPositionMM": text(least), "unrealisedPnl": text(upl),
            "cumRealisedPnl": text(sum((each.realised for each in self._engine.store.positions.values()), ZERO)),
            "bonus": "0", "collateralSwitch": True, "marginCollateral": True,
        }  # fmt: skip
        row = {
            "accountType": "UNIFIED", "accountLTV": "0", "accountIMRate": "0", "accountMMRate": rate,
            "totalEquity": text(equity), "totalWalletBalance": text(wallet), "totalMarginBalance": text(equity),
            "totalAvailableBalance": "" if isolated else text(max(equity - margin - orders, ZERO)),
            "totalPerpUPL": text(upl),
            "totalInitialMargin": text(margin + orders), "totalMaintenanceMargin": text(least), "coin": [coin],
        }  # fmt: skip
        return {"list": [row]}

    def fee_rate(self, params: Params) -> dict[str, Any]:
        names = [params["symbol"]] if params.get("symbol") else list(self._engine.tape.contracts())
        return {"list": [{"symbol": each, "takerFeeRate": "0.00055", "makerFeeRate": "0.0002"} for each in names]}

    def coins(self, params: Params) -> dict[str, Any]:
        return {"rows": [{"name": "USDT", "coin": "USDT", "remainAmount": "10000000", "chains": []}]}

    def realtime(self, params: Params) -> dict[str, Any]:
        """Open orders. With an id, or openOnly=1, also the last 500 that ended since this venue was started."""
        _require_scope(params)
        engine = self._engine
        orders: Iterable[Order] = engine.store.open_orders.values()
        if params.get("orderId") or params.get("orderLinkId"):
            named = engine.find(params)
            is_known = named is not None and (named.is_open or any(each is named for each in engine.recent))
            orders = [named] if named is not None and is_known else []
        elif str(params.get("openOnly", "")) == "1":
            orders = [each for each in engine.recent if not each.is_open]
        newest = engine.now_ms() - engine.visible_delay_ms
        found = [each for each in orders if self._is_asked(each, params) and each.created_ms <= newest]
        return _page(found, params, _order, _age_of_order, default=20, most=50)

    def history(self, params: Params) -> dict[str, Any]:
        """Ended orders of seven days; unfilled ones that were cancelled or rejected for 24 hours only."""
        _require_linear(params)
        engine = self._engine
        now = engine.now_ms()
        since, until = _window(params, now)
        orders: Iterable[Order] = engine.store.orders.values()
        if params.get("orderId") or params.get("orderLinkId"):
            named = engine.find(params)
            orders = [] if named is None else [named]
        found = [
            each
            for each in orders
            if not each.is_open
            and self._is_asked(each, params)
            and since <= each.created_ms <= until
            and each.updated_ms <= now - engine.history_delay_ms
            and not (each.status in SHORT_LIVED and each.filled == 0 and each.updated_ms < now - _DAY_MS)
        ]
        return _page(found, params, _order, _age_of_order, default=20, most=50)

    def executions(self, params: Params) -> dict[str, Any]:
        """Fills and funding of at most seven days, newest first."""
        _require_linear(params)
        since, until = _window(params, self._engine.now_ms())
        wanted = params.get("execType")
        found = []
        for each in reversed(self._engine.store.executions):
            if each.time_ms < since - _DAY_MS:  # booked in order, give or take a bar
                break
            if since <= each.time_ms <= until and self._is_asked(each, params) and (not wanted or each.kind == wanted):
                found.append(each)
        return _page(found, params, _execution, lambda each: (each.time_ms, each.sequence), default=50, most=100)

    def positions(self, params: Params) -> dict[str, Any]:
        """One row for a symbol that is named, held or not; with settleCoin only what is held."""
        _require_scope(params)
        account = self._engine.account
        if params.get("symbol"):
            contract = self._engine.contract(params)
            rows = [account.position(contract.name)]
        else:
            rows = [each for each in account.held() if self._is_asked(each, params)]
        limit = max(1, min(int(params.get("limit") or 20), 200))
        start = int(params.get("cursor") or 0)
        cursor = str(start + limit) if start + limit < len(rows) else ""
        page = [self._position(each) for each in rows[start : start + limit]]
        return {"category": "linear", "list": page, "nextPageCursor": cursor}

    def _is_asked(self, each: Order | Execution | Position, params: Params) -> bool:
        """Filters that Bybit knows; it ignores any other parameter and empty ones: a wrong look-up finds everything."""
        contract = self._engine.tape.contract(each.symbol)
        for name, field in (("settleCoin", "settle"), ("baseCoin", "base")):
            if params.get(name) and contract is not None and getattr(contract.instrument, field) != params[name]:
                return False
        return isinstance(each, Position) or _matches(each, params)

    def _position(self, position: Position) -> dict[str, Any]:
        account = self._engine.account
        mark = account.mark(position.symbol)
        value = abs(position.qty) * position.entry
        flat = position.qty == 0
        stop, profit = account.stop_price(position, "StopLoss"), account.stop_price(position, "TakeProfit")
        return {
            "symbol": position.symbol, "positionIdx": 0, "riskId": 1, "riskLimitValue": "2000000",
            "side": position.side, "size": text(abs(position.qty)), "avgPrice": text(position.entry),
            "positionValue": "" if flat else text(value), "tradeMode": 0, "autoAddMargin": 0,
            "positionStatus": "Normal", "leverage": text(account.leverage(position.symbol)),
            "markPrice": text(mark), "liqPrice": "", "bustPrice": "",
            "positionIM": "" if flat else text(account.position_margin(position)),
            "positionMM": "" if flat else text(abs(position.qty) * mark * MAINTENANCE_RATE),
            "positionBalance": "0", "tpslMode": "Full", "stopLoss": text(stop) if stop else "",
            "takeProfit": text(profit) if profit else "", "trailingStop": "0",
            "unrealisedPnl": "" if flat else text(account.unrealised(position)),
            "curRealisedPnl": text(position.realised), "cumRealisedPnl": text(position.realised),
            "adlRankIndicator": 0 if flat else 2, "isReduceOnly": False, "seq": position.updated_ms,
            "createdTime": str(position.created_ms), "updatedTime": str(position.updated_ms),
        }  # fmt: skip


def _ids(order: Order) -> dict[str, str]:
    return {"orderId": order.order_id, "orderLinkId": order.link_id}


def _require_linear(params: Params) -> None:
    if params.get("category") != "linear":
        raise RefusedError(10001, "params error: category only linear is served here")


def _require_scope(params: Params) -> None:
    _require_linear(params)
    if not any(params.get(name) for name in ("symbol", "settleCoin", "baseCoin")):
        raise RefusedError(10001, "params error: symbol or settleCoin or baseCoin is required")


def _window(params: Params, now: int) -> tuple[int, int]:
    """[startTime, endTime], at most seven days of it; the last seven days if neither is given."""
    start, end = params.get("startTime"), params.get("endTime")
    if start and end and int(end) - int(start) > _WEEK_MS:
        raise RefusedError(10001, "The time range between startTime and endTime cannot exceed 7 days")
    if start:
        return int(start), int(end) if end else int(start) + _WEEK_MS
    until = int(end) if end else now
    return until - _WEEK_MS, until


def _matches(each: Order | Execution, params: Params) -> bool:
    if params.get("symbol") and each.symbol != params["symbol"]:
        return False
    if params.get("orderId"):
        return each.order_id == params["orderId"]
    if params.get("orderLinkId"):
        return each.link_id == params["orderLinkId"]
    if isinstance(each, Order):
        wanted = params.get("orderFilter")
        if wanted and (wanted == "StopOrder") != bool(each.stop_order_type):
            return False
        status = params.get("orderStatus")
        return not status or each.status == status
    return True


def _page(
    found: list[Any],
    params: Params,
    row: Callable[[Any], dict[str, Any]],
    place: Callable[[Any], tuple[int, int]],
    *,
    default: int,
    most: int,
) -> dict[str, Any]:
    """Newest first. The cursor names the last row of the page, so that new rows do not shift the pages."""
    limit = max(1, min(int(params.get("limit") or default), most))
    after = _after(str(params.get("cursor") or ""))
    ordered = sorted((each for each in found if after is None or place(each) < after), key=place, reverse=True)
    page = ordered[:limit]
    cursor = "{}:{}".format(*place(page[-1])) if len(ordered) > limit else ""
    return {"category": "linear", "list": [row(each) for each in page], "nextPageCursor": cursor}


def _after(cursor: str) -> tuple[int, int] | None:
    """The place that a cursor names; ccxt and others hand it back as it was, or encoded once."""
    if not cursor:
        return None
    try:
        time_ms, sequence = cursor.replace("%3A", ":").split(":")
        return int(time_ms), int(sequence)
    except ValueError:
        raise RefusedError(10001, "params error: cursor invalid") from None


def _age_of_order(order: Order) -> tuple[int, int]:
    return order.created_ms, order.sequence


def _order(order: Order) -> dict[str, Any]:
    average = text(order.value / order.filled) if order.filled else ""
    leaves = order.leaves if order.is_open else ZERO
    return {
        "orderId": order.order_id, "orderLinkId": order.link_id, "blockTradeId": "", "symbol": order.symbol,
        "price": text(order.price), "qty": text(order.qty), "side": order.side, "isLeverage": "", "positionIdx": 0,
        "orderStatus": order.status, "createType": order.create_type, "cancelType": order.cancel_type,
        "rejectReason": order.reject_reason, "avgPrice": average, "leavesQty": text(leaves),
        "leavesValue": text(leaves * order.price), "cumExecQty": text(order.filled), "cumExecValue": text(order.value),
        "cumExecFee": text(order.fee), "cumFeeDetail": {"USDT": text(order.fee)} if order.fee else {},
        "timeInForce": order.tif, "orderType": order.order_type, "stopOrderType": order.stop_order_type,
        "orderIv": "", "triggerPrice": text(order.trigger_price) if order.trigger_price else "",
        "takeProfit": text(order.take_profit) if order.take_profit else "",
        "stopLoss": text(order.stop_loss) if order.stop_loss else "",
        "tpslMode": "Full" if order.stop_loss or order.take_profit or order.stop_order_type != "" else "",
        "tpLimitPrice": "0", "slLimitPrice": "0", "tpTriggerBy": "", "slTriggerBy": "",
        "triggerDirection": order.trigger_direction, "triggerBy": "LastPrice" if order.trigger_price else "",
        "lastPriceOnCreated": text(order.last_price), "reduceOnly": order.reduce_only,
        "closeOnTrigger": order.close_on_trigger, "placeType": "", "smpType": "None", "smpGroup": 0,
        "smpOrderId": "", "createdTime": str(order.created_ms), "updatedTime": str(order.updated_ms),
    }  # fmt: skip


def _execution(each: Execution) -> dict[str, Any]:
    return {
        "symbol": each.symbol, "orderId": each.order_id, "orderLinkId": each.link_id, "side": each.side,
        "orderPrice": text(each.order_price), "orderQty": text(each.order_qty), "leavesQty": text(each.leaves),
        "createType": each.create_type, "orderType": each.order_type,
        "stopOrderType": each.stop_order_type or "UNKNOWN", "execFee": text(each.fee), "feeCurrency": "",
        "execId": each.exec_id, "execPrice": text(each.price), "execQty": text(each.qty), "execType": each.kind,
        "execValue": text(each.price * each.qty), "execTime": str(each.time_ms), "isMaker": each.is_maker,
        "feeRate": text(each.fee_rate.quantize(MAINTENANCE_RATE / 100_000)), "tradeIv": "", "markIv": "",
        "markPrice": text(each.price), "indexPrice": "", "underlyingPrice": "", "blockTradeId": "",
        "closedSize": text(each.closed), "seq": each.sequence,
    }  # fmt: skip
