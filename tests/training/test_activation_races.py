"""Two that want the same slot at the same moment, on the database that lets both run (READ COMMITTED)."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.db import connection, connections, transaction

from ops_app import journal
from tests.conftest import NEEDS_POSTGRESQL
from tests.factories import ArtifactFactory, SymbolFactory
from training_app import activation, registry
from training_app.choices import ActivationKind, ActivationState
from training_app.models import Activation, GenerationCounter

pytestmark = pytest.mark.django_db(transaction=True)
PATIENCE = 30.0


def test_f33_a_request_at_the_moment_of_a_promotion_costs_the_training_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the counter's lock the request slips in, and the promotion's own row breaks `one_open_activation`."""
    if connection.vendor != "postgresql":
        pytest.skip(NEEDS_POSTGRESQL)
    asked_for = ArtifactFactory(requirement=registry.requirement(), symbols=[SymbolFactory()])
    trained = ArtifactFactory(requirement=registry.requirement(), scope=asked_for.scope)
    GenerationCounter.objects.get_or_create(pk=1, defaults={"value": 0})
    inserted, published = threading.Event(), threading.Event()
    record = journal.record

    def slow(kind: str, *arguments: Any, **more: Any) -> None:
        record(kind, *arguments, **more)
        if kind == "activation_requested":  # its row is inserted and not committed
            inserted.set()
            published.wait(1.0)  # a promotion that waits for this request is right, too

    monkeypatch.setattr(journal, "record", slow)
    monkeypatch.setattr(activation.queue, "enqueue", lambda *_, **__: None)

    def ask() -> None:
        try:
            activation.request_activation(artifact=asked_for)
        finally:
            connections.close_all()

    person = threading.Thread(target=ask)
    person.start()
    assert inserted.wait(PATIENCE)
    with transaction.atomic():
        activation.activate(artifact=trained, kind=ActivationKind.PROMOTION, reason="TEST")
    published.set()
    person.join(PATIENCE)
    assert Activation.objects.get(artifact=trained).state == ActivationState.APPLIED
    assert Activation.objects.get(artifact=asked_for).state == ActivationState.REFUSED
