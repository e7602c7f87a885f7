"""What differs between venues, as one table: client order ids, attached stops, and what the venues' codes mean.

Sources: ccxt 4.5.90's error tables and the venues' documentation. Only what runs against the loopback exchange of
`tests/bybit` is `proven`; money is never sent to a venue that is not (`exchanges.factory.live_venue` refuses it).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

DUPLICATE_ID, TOO_SMALL, FUNDS = "DUPLICATE", "MIN_NOTIONAL", "INSUFFICIENT_FUNDS"
KEY_REFUSED, CLOCK_SKEW, CROSSED, NOT_REDUCING = "KEY_REFUSED", "CLOCK_SKEW", "TRIGGER_CROSSED", "REDUCE_ONLY"
SIZE, GRID, BAND, HALTED = "MIN_QUANTITY", "PRECISION", "PRICE_BAND", "NOT_TRADING"
GONE = "ORDER_NOT_FOUND"


@dataclass(frozen=True, slots=True, kw_only=True)
class VenueRules:
    """One venue. Codes are the venue's own, as texts; `texts` are parts of its messages, for venues without codes.

    `unclear`: codes that ccxt turns into a refusal although the order may exist (time-outs, server errors).
    `refused`: codes that ccxt leaves as a bare ExchangeError although the order surely does not exist.
    `meaning`: our stable code for a refusal. `finished`: codes of a cancel that came too late.
    `requests_per_second`: of (data, trading); None leaves the pace to ccxt's own limiter.
    """

    ccxt_id: str
    client_id_parameter: str
    attaches_stops: bool
    proven: bool
    code_pattern: re.Pattern[str]
    duplicates: frozenset[str]
    duplicate_texts: tuple[str, ...] = ()
    unclear: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    refused_texts: Mapping[str, str] = field(default_factory=dict)
    meaning: Mapping[str, str] = field(default_factory=dict)
    key_codes: frozenset[str] = frozenset()
    ban_codes: frozenset[str] = frozenset()
    ban_statuses: frozenset[int] = frozenset()
    finished: frozenset[str] = frozenset()
    leverage_unchanged: frozenset[str] = frozenset()
    requests_per_second: tuple[float, float] | None = None

    def code_of(self, text: str) -> str:
        """Return the venue's code in the message of an error of ccxt, or the empty text."""
        for match in self.code_pattern.finditer(text):
            if match.group(1) not in ("0", "1"):  # okx: the envelope says 1, the order's own code says why
                return match.group(1)
        return ""


def _codes(*codes: int | str) -> frozenset[str]:
    return frozenset(str(code) for code in codes)


BYBIT = VenueRules(
    ccxt_id="bybit",
    client_id_parameter="orderLinkId",
    attaches_stops=True,
    proven=True,
    code_pattern=re.compile(r'"ret_?[cC]ode"\s*:\s*"?(-?\d+)'),
    duplicates=_codes(110072, 170141, 12141, 10014, 110030),
    unclear=_codes(10000, 10016, 5004, 170007, 170146, 170149, 170234),
    refused=_codes(110023, 110063, 110066, 110074),
    meaning={
        **dict.fromkeys(_codes(110004, 110006, 110007, 110012, 110014, 110044, 110045, 110051, 110052, 110053), FUNDS),
        **dict.fromkeys(_codes(110094, 170140), TOO_SMALL),
        **dict.fromkeys(_codes(170136), SIZE),
        **dict.fromkeys(_codes(12137, 170134, 170137), GRID),
        **dict.fromkeys(_codes(110003, 170192, 170193, 170194), BAND),
        **dict.fromkeys(_codes(110017, 110034), NOT_REDUCING),
        **dict.fromkeys(_codes(110092, 110093), CROSSED),
        **dict.fromkeys(_codes(110023, 110042, 110063, 110066, 110074), HALTED),
        "10029": "SYMBOL_NOT_ALLOWED",
    },
    key_codes=_codes(10003, 10004, 10005, 10007, 10008, 10010, 10020, 10024, 10027, 10028, 33004),
    ban_codes=_codes(10009),
    ban_statuses=frozenset({403}),
    finished=_codes(110001, 110008, 110010, 170142, 170139, 170143, 170190, 170213, 20001),
    leverage_unchanged=_codes(110043),
    requests_per_second=(60.0, 8.0),  # half of 120/s per IP; orders: 10/s per account
)
BINANCE = VenueRules(
    ccxt_id="binanceusdm",
    client_id_parameter="newClientOrderId",
    attaches_stops=False,
    proven=False,
    code_pattern=re.compile(r'"code"\s*:\s*(-?\d+)'),
    duplicates=_codes(-4116),
    duplicate_texts=("Duplicate order sent",),
    unclear=_codes(-1006, -1007, -1000, -1001),
    refused=_codes(-2019),
    meaning={
        **dict.fromkeys(_codes(-2019, -2018, -2010), FUNDS),
        **dict.fromkeys(_codes(-4164, -1013), TOO_SMALL),
        **dict.fromkeys(_codes(-1111, -4014), GRID),
        **dict.fromkeys(_codes(-4003), SIZE),
        **dict.fromkeys(_codes(-2022), NOT_REDUCING),
        **dict.fromkeys(_codes(-2021), CROSSED),
        **dict.fromkeys(_codes(-4140), HALTED),
    },
    key_codes=_codes(-2014, -2015, -1022),
    ban_statuses=frozenset({418, 403}),
    finished=_codes(-2011, -2013),
    leverage_unchanged=_codes(-4028),
)
OKX = VenueRules(
    ccxt_id="okx",
    client_id_parameter="clOrdId",
    attaches_stops=True,
    proven=False,
    code_pattern=re.compile(r'"s?[cC]ode"\s*:\s*"(\d+)"'),
    duplicates=_codes(51016),
    unclear=_codes(50004, 50026, 51149),
    refused=_codes(51169),
    meaning={
        **dict.fromkeys(_codes(51008, 51131), FUNDS),
        **dict.fromkeys(_codes(51020), SIZE),
        **dict.fromkeys(_codes(51121), GRID),
        **dict.fromkeys(_codes(51169), NOT_REDUCING),
        **dict.fromkeys(_codes(51021, 51028), HALTED),
    },
    key_codes=_codes(50100, 50101, 50103, 50104, 50105, 50110, 50111, 50113, 50114, 50119),
    ban_statuses=frozenset({403}),
    finished=_codes(51400, 51401, 51402, 51410, 51503),
)
KRAKEN = VenueRules(
    ccxt_id="kraken",
    client_id_parameter="cl_ord_id",
    attaches_stops=False,
    proven=False,
    code_pattern=re.compile(r'"(E[A-Za-z]+:[^"\]]+)"'),
    duplicates=frozenset(),
    duplicate_texts=("cl_ord_id already", "Duplicate"),
    refused_texts={
        "Cost minimum not met": TOO_SMALL,
        "Tick size check failed": GRID,
        "Insufficient funds": FUNDS,
        "Volume minimum not met": SIZE,
    },
    finished=frozenset({"EOrder:Unknown order"}),
)
VENUES: dict[str, VenueRules] = {rules.ccxt_id: rules for rules in (BYBIT, BINANCE, OKX, KRAKEN)}


def rules_of(ccxt_id: str) -> VenueRules | None:
    return VENUES.get(ccxt_id)
