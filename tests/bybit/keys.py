"""Who may do what: API keys, signatures, the receive window. Bybit's codes."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from tests.bybit.checks import RefusedError

FUTURE_MS = 1_000
DEFAULT_WINDOW_MS = 5_000


@dataclass
class ApiKey:
    """One key and what is true about it now (control events change it)."""

    key: str
    secret: str
    revoked: bool = False
    expired: bool = False
    wrong_ip: bool = False
    read_only: bool = False
    withdraw: bool = False
    may_trade: bool = True


@dataclass(frozen=True, slots=True)
class Stamp:
    """When the client says it made a request, and how long it is good for."""

    request_ms: int
    window_ms: int

    def check(self, now: int, *, tolerance_ms: int) -> None:
        """Raises `RefusedError` 10002 outside [server time - window, server time + tolerance)."""
        if now - self.window_ms <= self.request_ms < now + tolerance_ms:
            return
        raise RefusedError(
            10002,
            "invalid request, please check your server timestamp or recv_window param. "
            f"req_timestamp[{self.request_ms}],server_timestamp[{now}],recv_window[{self.window_ms}]",
        )


def read_stamp(headers: Mapping[str, str]) -> Stamp:
    try:
        window = headers.get("X-BAPI-RECV-WINDOW") or DEFAULT_WINDOW_MS
        return Stamp(int(headers["X-BAPI-TIMESTAMP"]), int(window))
    except (KeyError, ValueError, TypeError):
        raise RefusedError(10001, "openapi sign params error! empty value: apiTimestamp[]") from None


def check_key(known: ApiKey, headers: Mapping[str, str], payload: str) -> None:
    """Raises `RefusedError` unless the request was signed by the key that this venue knows."""
    key = headers.get("X-BAPI-API-KEY") or ""
    if not key:
        raise RefusedError(10001, "openapi sign params error! empty value: apiKey[]")
    if key != known.key or known.revoked:
        raise RefusedError(10003, "API key is invalid.")
    if known.expired:
        raise RefusedError(33004, "Your api key has expired.")
    if known.wrong_ip:
        raise RefusedError(10010, "Unmatched IP, please check your API key's bound IP addresses.")
    window = headers.get("X-BAPI-RECV-WINDOW") or ""
    origin = f"{headers.get('X-BAPI-TIMESTAMP')}{key}{window}{payload}"
    expected = hmac.new(known.secret.encode(), origin.encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected, headers.get("X-BAPI-SIGN") or ""):
        raise RefusedError(10004, f"error sign! origin_string[{origin}]")


def check_permission(known: ApiKey, *, writes: bool) -> None:
    if writes and (known.read_only or not known.may_trade):
        raise RefusedError(10005, "Permission denied, please check your API key permissions.")


def permissions(known: ApiKey, now: int) -> dict[str, object]:
    """The answer of `/v5/user/query-api`."""
    trades = ["Order", "Position"] if known.may_trade else []
    return {
        "id": "13770661",
        "note": "loopback",
        "apiKey": known.key,
        "readOnly": int(known.read_only),
        "secret": "",
        "permissions": {
            "ContractTrade": trades,
            "Spot": ["SpotTrade"] if known.may_trade else [],
            "Wallet": ["AccountTransfer", "SubMemberTransfer", "Withdraw"] if known.withdraw else [],
            "Options": [],
            "Derivatives": ["DerivativesTrade"] if known.may_trade else [],
            "CopyTrading": [],
            "BlockTrade": [],
            "Exchange": [],
            "NFT": [],
            "Affiliate": [],
            "Earn": [],
        },
        "ips": ["*"],
        "type": 1,
        "deadlineDay": 83,
        "expiredAt": "2030-01-01T00:00:00Z",
        "createdAt": "2020-01-01T00:00:00Z",
        "unified": 0,
        "uta": 1,
        "userID": 24617703,
        "inviterID": 0,
        "vipLevel": "No VIP",
        "mktMakerLevel": "0",
        "affiliateID": 0,
        "rsaPublicKey": "",
        "isMaster": True,
        "parentUid": "0",
        "kycLevel": "LEVEL_1",
        "kycRegion": "",
    }
