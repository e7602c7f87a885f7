"""`manage.py models`: the registry, with every reason for and against, and who serves; activate and roll back."""

from __future__ import annotations

import argparse
import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from rich.console import Console
from rich.table import Table

from training_app import activation, selectors
from training_app.choices import ActivationKind, ActivationState
from training_app.exceptions import ActivationRefused
from training_app.models import Activation, ModelArtifact


class Command(BaseCommand):
    help = "List the trained models with every reason against them; activate one, or roll a slot back."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        action = parser.add_mutually_exclusive_group()
        action.add_argument("--activate", type=int, metavar="ID", help="verify this artifact and make it active")
        action.add_argument("--rollback", metavar="SLOT", help="go back to the model that served SLOT before")
        parser.add_argument("--reason", default="", help="why, for the history")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def handle(self, **options: Any) -> None:
        try:
            if options["activate"] is not None:
                self._apply(self._activate(options["activate"], options["reason"]), as_json=options["json"])
                return
            if options["rollback"] is not None:
                requested = activation.roll_back(slot=options["rollback"], reason=options["reason"])
                self._apply(requested, as_json=options["json"])
                return
        except ActivationRefused as error:
            raise CommandError(str(error)) from error
        self._list(as_json=options["json"])

    def _activate(self, artifact_id: int, why: str) -> Activation:
        artifact = ModelArtifact.objects.select_related("scope").filter(pk=artifact_id).first()
        if artifact is None:
            raise CommandError(f"artifact {artifact_id} does not exist; `models` lists the ids")
        return activation.request_activation(artifact=artifact, kind=ActivationKind.MANUAL, reason=why)

    def _apply(self, requested: Activation, *, as_json: bool) -> None:
        """This process may load models, so it does the worker's part at once; a worker may have been faster."""
        activation.apply_activation(requested.pk)
        requested.refresh_from_db()
        if as_json:
            facts = {
                "activation": requested.pk,
                "slot": requested.slot,
                "artifact": requested.artifact_id,
                "state": requested.state,
                "generation": requested.generation,
                "reason": requested.reason,
            }
            self.stdout.write(json.dumps(facts, indent=1))
        if requested.state == ActivationState.REFUSED:
            raise CommandError(f"{requested.artifact} was not activated: {requested.reason}")
        if not as_json:
            self.stdout.write(f"{requested.slot} is served by {requested.artifact}, generation {requested.generation}")

    def _list(self, *, as_json: bool) -> None:
        entries = selectors.registry_view()
        if as_json:
            rows = [
                {
                    "id": entry.artifact.pk,
                    "slot": entry.artifact.scope.key,
                    "version": entry.artifact.version,
                    "active": entry.active_slot is not None,
                    "score": entry.artifact.score,
                    "gates_passed": entry.artifact.gates_passed,
                    "symbols": list(entry.symbols),
                    "created_at": entry.artifact.created_at.isoformat(),
                    "sha256": entry.artifact.sha256,
                    "refusals": [{"code": each.code.value, "text": each.text} for each in entry.refusals],
                }
                for entry in entries
            ]
            self.stdout.write(json.dumps(rows, indent=1))
            return
        if not entries:
            self.stdout.write(
                f"no model of {selectors.market()} yet: `train` asks for one, `coverage` shows what is ready"
            )
            return
        table = Table(title=f"Models of {selectors.market()}")
        for column in ("id", "slot", "version", "created", "symbols", "score", "serves", "against"):
            table.add_column(column, overflow="fold")
        for entry in entries:
            table.add_row(
                str(entry.artifact.pk),
                entry.artifact.scope.key,
                f"v{entry.artifact.version}",
                f"{entry.artifact.created_at:%Y-%m-%d %H:%M}",
                str(len(entry.symbols)),
                f"{entry.artifact.score:.4g}",
                "yes" if entry.active_slot else "",
                "\n".join(each.text for each in entry.refusals) or "nothing",
            )
        Console(file=self.stdout).print(table)  # type: ignore[arg-type]  # Django's OutputWrapper writes like a file
