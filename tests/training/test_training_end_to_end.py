"""Both modes and encodings from stored candles to a verdict, with the real pipeline on little data."""

from __future__ import annotations

from typing import Any

import pytest

from ops_app.clock import SimulatedClock
from ops_app.queue import Message
from training_app import artifacts, execution, services
from training_app.choices import RunState
from training_app.models import ModelArtifact, RunSymbol

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("small_training")]


@pytest.mark.parametrize("encoding", ["index", "one_hot"])
def test_a_multi_symbol_model_is_trained_judged_and_leaves_a_verdict_for_every_symbol(
    encoding: str, settings: Any, sim: SimulatedClock, sent: list[Message], stored_market: Any
) -> None:
    settings.SYMBOL_ENCODING = encoding
    symbols = stored_market(n_symbols=8)
    runs = plan_after_debounce(sim)
    assert [run.scope.key for run in runs] == ["multi_symbol:simulated:1h"]
    done = execution.execute(runs[0].pk, "test-worker")
    assert done is not None
    assert done.state in (RunState.SUCCEEDED, RunState.REJECTED)
    artifact = ModelArtifact.objects.get()
    assert artifact.symbol_encoding == encoding
    assert artifact.gates
    assert artifacts.load(artifact).symbols == tuple(sorted(symbol.code for symbol in symbols))
    verdicts = RunSymbol.objects.filter(run=runs[0])
    assert verdicts.count() == 8
    assert not verdicts.filter(open=True).exists()


def plan_after_debounce(sim: SimulatedClock) -> list[Any]:
    import datetime as dt

    assert services.plan() == []
    sim.advance(dt.timedelta(minutes=11))
    return services.plan()
