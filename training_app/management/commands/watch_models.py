"""`manage.py watch_models`: compare the active models' features and trades with their training."""

from __future__ import annotations

import argparse
import datetime as dt
import json
from typing import Any

from django.core.management.base import BaseCommand

from training_app import watching
from training_app.models import ModelWatch


class Command(BaseCommand):
    help = (
        "Look whether the features and trades of the active models still are as their training promised, write down "
        "what was found, and ask for a training, once per model, where they are not. A worker does it every market day."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--now", action="store_true", help="also models that were looked at within the last day")
        parser.add_argument("--json", action="store_true", help="print one JSON list")

    def handle(self, **options: Any) -> None:
        rows = watching.watch_models(every=dt.timedelta(0)) if options["now"] else watching.watch_models()
        if options["json"]:
            self.stdout.write(json.dumps([_facts(row) for row in rows]))
            return
        for row in rows:
            self.stdout.write(f"{row.artifact.scope.key} {row.artifact}: {row.get_verdict_display()}. {row.text}")
            for each in row.features[: watching.WORST]:
                bound, mark = each["bound"] or 0.0, "drifted" if each["drifted"] else ""
                self.stdout.write(f"  {each['feature']:<28} PSI {each['psi']:.3f}, bound {bound:.3f} {mark}")
        if not rows:
            self.stdout.write("No active model is due: each is looked at once a market day (--now: at once).")


def _facts(row: ModelWatch) -> dict[str, Any]:
    return {
        "slot": row.artifact.scope.key, "artifact": row.artifact_id, "at": row.at.isoformat(),
        "since": row.since.isoformat(), "samples": row.samples, "verdict": row.verdict, "text": row.text,
        "drifted": row.drifted, "psi_max": row.psi_max, "trades": row.trades, "wins": row.wins,
        "promised_precision": row.promised_precision, "guard": row.guard, "asks": row.asks, "features": row.features,
    }  # fmt: skip
