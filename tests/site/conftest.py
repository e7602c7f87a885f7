"""People with each role, and a world with one row of everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from django.apps import apps
from django.contrib.auth.models import Group, User
from django.core.management.color import no_style
from django.db import connection
from django.test import Client
from rest_framework.authtoken.models import Token
from rest_framework.test import APIClient

from coverage_app.choices import BlockReason
from coverage_app.models import Block, Symbol
from ops_app import clock, queue
from tests import factories as make
from trading_app.models import Bot
from tradingsite import setup_steps
from tradingsite.permissions import ROLES
from training_app.choices import ActivationKind, ActivationState, WatchVerdict
from training_app.models import Activation, ActiveModel, ModelArtifact, ModelWatch, TrainingRun, TrainingScope

PASSWORD = "a-long-secret-of-tests"


@dataclass(frozen=True)
class World:
    """One row of everything; every row's id is 1, so that paths can be written down."""

    symbol: Symbol
    block: Block
    run: TrainingRun
    artifact: ModelArtifact
    active: ActiveModel
    bot: Bot


@pytest.fixture
def now(db: None) -> Iterator[clock.SimulatedClock]:
    with clock.simulated(make.EPOCH) as simulated, queue.capture():
        yield simulated


@pytest.fixture
def people(db: None) -> dict[str, User]:
    """A person per role, and `nobody` who may log in to nothing."""
    setup_steps.create_groups()
    found = {"nobody": User.objects.create_user("nobody", password=PASSWORD)}
    for role in ROLES:
        found[role] = User.objects.create_user(f"the-{role}", password=PASSWORD)
        found[role].groups.add(Group.objects.get(name=role))
    return found


@pytest.fixture
def browse(people: dict[str, User]) -> Callable[[str], Client]:
    def log_in(role: str) -> Client:
        client = Client()
        client.force_login(people[role], backend="django.contrib.auth.backends.ModelBackend")
        return client

    return log_in


@pytest.fixture
def call(people: dict[str, User]) -> Callable[[str], APIClient]:
    def with_token(role: str) -> APIClient:
        client = APIClient()
        token, _ = Token.objects.get_or_create(user=people[role])
        client.credentials(HTTP_AUTHORIZATION=f"Token {token.key}")
        return client

    return with_token


def count_on_from_given_ids() -> None:
    """PostgreSQL counts in a sequence, which does not see ids that were given."""
    models = [model for model in apps.get_models() if model._meta.managed]
    with connection.cursor() as cursor:
        for statement in connection.ops.sequence_reset_sql(no_style(), models):
            cursor.execute(statement)


@pytest.fixture
def world(now: clock.SimulatedClock) -> World:
    symbol = make.SymbolFactory(pk=1, code="AAA/USDT:USDT")
    block = make.BlockFactory(pk=1, symbol=symbol, reason=BlockReason.TRAINING_FAILED)
    done = make.TrainingRunFactory(pk=2, succeeded=True, run_no=1)
    run = make.TrainingRunFactory(pk=1, scope=done.scope, run_no=2)
    TrainingScope.objects.update(run_seq=2)
    make.RunSymbolFactory(pk=1, run=run, symbol=symbol)
    artifact = make.ArtifactFactory(pk=1, run=done, symbols=[symbol])
    active = make.ActiveModelFactory(pk=1, artifact=artifact)
    bot = make.BotFactory(pk=1, name="main")
    decision = make.DecisionFactory(pk=1, bot=bot, symbol=symbol)
    position = make.PositionFactory(pk=1, bot=bot, symbol=symbol)
    order = make.OrderFactory(pk=1, bot=bot, symbol=symbol, decision=decision, position=position)
    make.FillFactory(pk=1, order=order)
    make.EquityPointFactory(pk=1, bot=bot)
    Activation.objects.create(
        pk=1, slot=active.slot, artifact=artifact, kind=ActivationKind.MANUAL, state=ActivationState.APPLIED,
        generation=active.generation, requested_at=make.EPOCH, decided_at=make.EPOCH,
    )  # fmt: skip
    ModelWatch.objects.create(
        pk=1, artifact=artifact, at=make.EPOCH, since=make.EPOCH, samples=300, drifted=1, psi_max=0.75, trades=25,
        wins=15, promised_precision=0.6, verdict=WatchVerdict.STEADY, text="STEADY: drifted=1, features=40",
        features=[{"feature": "atr_pct", "psi": 0.75, "bound": 0.25, "missing": 0.0, "missing_before": 0.0,
                   "drifted": True},
                  {"feature": "beta_168", "psi": 2.5, "bound": None, "missing": 0.0, "missing_before": 0.0,
                   "drifted": False}],
    )  # fmt: skip
    make.UniverseRefreshFactory(pk=1)
    make.EventFactory(pk=1)
    count_on_from_given_ids()
    return World(symbol=symbol, block=block, run=run, artifact=artifact, active=active, bot=bot)
