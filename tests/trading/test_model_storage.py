"""A bot whose storage of models does not answer goes on with what it holds, and takes the new model later."""

from __future__ import annotations

from typing import Any

import pytest

from ops_app import clock
from ops_app.models import Alert
from quant.model import MetaModel
from tests.trading.conftest import World
from tests.trading.test_models_and_features import activate_real
from trading_app import loader as loading
from training_app import artifacts
from training_app.exceptions import ArtifactUnreachable
from training_app.models import ModelArtifact

pytestmark = pytest.mark.django_db


def test_i10_an_outage_of_the_storage_refuses_no_model_and_delays_only_the_new_one(
    make_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world: World = make_world()
    first = activate_real(world)
    asked: list[int] = []
    is_down = False

    def load(artifact: ModelArtifact) -> MetaModel:
        asked.append(artifact.pk)
        if is_down:
            raise ArtifactUnreachable("the storage cannot be reached")
        return artifacts.load(artifact)

    seconds = 1_000.0
    monkeypatch.setattr(clock, "monotonic", lambda: seconds)
    loader = loading.ModelLoader(bot=world.runner().bot, load=load)
    assert loader.refresh().loaded == 1
    second = activate_real(world)
    is_down = True
    for _ in range(5):
        report = loader.refresh()
        assert (report.loaded, report.refused) == (0, 0)
    assert asked == [first.artifact_id, second.artifact_id], "not again within the minute"
    [held] = loader.models.values()
    assert held.artifact.pk == first.artifact_id
    assert Alert.objects.filter(resolved_at=None, text__contains="cannot fetch model").count() == 1
    second.artifact.refresh_from_db()
    assert second.artifact.integrity_error == ""
    is_down = False
    seconds += loading.UNREACHABLE_SECONDS
    assert loader.refresh().loaded == 1
    [held] = loader.models.values()
    assert held.artifact.pk == second.artifact_id
    assert not Alert.objects.filter(resolved_at=None, text__contains="cannot fetch model").exists()
