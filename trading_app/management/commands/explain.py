"""`manage.py explain SYMBOL`: why it is, or is not, traded."""

from __future__ import annotations

import datetime as dt
import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.core.serializers.json import DjangoJSONEncoder

from ops_app import guards
from trading_app.explaining import Explanation, UnknownCodeError, explain


class Command(BaseCommand):
    help = "Say why a symbol is, or is not, traded: state, blocks with evidence, model, run, decisions, position."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("symbol", help="Code like BTC/USDT:USDT, or its beginning: BTC/USDT, btc.")
        parser.add_argument("--decisions", type=int, default=10, help="How many of the newest decisions are shown.")
        parser.add_argument("--json", action="store_true", help="For machines.")

    def handle(self, *, symbol: str, decisions: int, json: bool, **_: Any) -> None:
        guards.require_migrated()
        try:
            found = explain(symbol, decisions=decisions)
        except UnknownCodeError as error:
            raise CommandError(str(error), returncode=2) from error
        self.stdout.write(as_json(found) if json else as_text(found))


def as_json(found: Explanation) -> str:
    return json.dumps(found.to_dict(), cls=DjangoJSONEncoder, indent=2)


def as_text(found: Explanation) -> str:
    lines = [
        f"{found.code} on {found.market}, market time {_at(found.now)}",
        found.verdict,
        "",
        f"State      {found.state}" + (f"  {found.evidence}" if found.evidence else ""),
        f"Next look  {_at(found.recheck_at)}",
        f"History    {found.history_days:.0f} days, {found.history_coverage:.1%}, newest {_at(found.last_candle_at)}",
        f"Model      {f'v{found.artifact_version} (#{found.artifact_id})' if found.artifact_id else 'none covers it'}",
        f"Bot        {found.bot or 'none'}" + (f": {found.entries_blocked}" if found.entries_blocked else ""),
    ]
    if found.run is not None:
        run = found.run
        lines.append(
            f"Run        #{run.run_id} {run.state} {run.progress:.0%} {run.stage}  {run.cause}  {run.error}".rstrip()
        )
    for block in found.blocks:
        until = "until a person lifts it" if block.permanent else f"looked at again {_at(block.recheck_at)}"
        lines.append(f"Block      {block.evidence} ({until}; since {_at(block.opened_at)})")
    if found.position is not None:
        held = found.position
        lines.append(
            f"Position   {held.quantity} at {held.entry_price}, stop {held.stop_price} "
            f"({'live' if held.has_live_stop else 'NOT live'}), target {held.target_price}, "
            f"until {_at(held.expires_at)}" + ("  FOREIGN: never traded" if held.foreign else "")
        )
    lines += [f"Order      {each}: outcome unknown, looked up" for each in found.unknown_orders]
    if found.decisions:
        lines.append("Decisions")
        for row in found.decisions:
            side = {1: "long", -1: "short"}.get(row.side, "-")
            probability = f"{row.probability:.3f}" if row.probability is not None else "  -  "
            lines.append(f"  {_at(row.bar_at)}  {row.outcome:<9} {side:<5} {probability}  {row.reason}")
    return "\n".join(lines)


def _at(moment: dt.datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC" if moment is not None else "-"
