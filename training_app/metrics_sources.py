"""What Prometheus is told of training: states, runs, the active models' age. A few queries at each scrape."""

from __future__ import annotations

from collections.abc import Iterable

from django.db.models import Count, Max
from prometheus_client.core import Metric

from ops_app import clock, metrics
from training_app import selectors
from training_app.choices import RunState
from training_app.models import ModelArtifact, TrainingRun, TrainingScope


def training() -> Iterable[Metric]:
    """Yield the counts of symbols by state, of runs by state, and of each active model's age."""
    market = selectors.market()
    states = selectors.state_counts(selectors.symbol_states(market))
    yield metrics.labelled("symbols", "Symbols by state.", "state", states.items())
    counted = dict(
        TrainingRun.objects.filter(scope__market=market).order_by().values_list("state").annotate(count=Count("pk"))
    )
    runs = ((state.value, float(counted.get(state.value, 0))) for state in RunState)
    yield metrics.labelled("training_runs", "Training runs by state.", "state", runs)
    scopes = TrainingScope.objects.filter(market=market).aggregate(worst=Max("failures"))
    failures = scopes["worst"] or 0
    yield metrics.gauge("training_failures_in_a_row", "Most failed or refused runs in a row of a scope.", failures)
    active = selectors.active_models(market=market)
    now = clock.market_now()
    ages = ((slot.slot, (now - slot.artifact.created_at).total_seconds()) for slot in active)
    yield metrics.labelled("model_age_seconds", "Market time since the active model was trained.", "slot", ages)
    usable = ((slot.slot, float(slot.usable)) for slot in active)
    yield metrics.labelled("model_usable", "1: the active model fits the settings and its files.", "slot", usable)
    watches = selectors.newest_watches(market=market)
    worst = ((slot, watch.psi_max) for slot, watch in watches.items() if watch.psi_max is not None)
    yield metrics.labelled("model_drift_psi_max", "Largest PSI of a feature of the active model.", "slot", worst)
    drifted = ((slot, float(watch.drifted)) for slot, watch in watches.items())
    yield metrics.labelled("model_features_drifted", "Features of the active model above their bound.", "slot", drifted)
    newest = max((slot.generation for slot in active), default=0)
    yield metrics.gauge("model_generation", "Generation of the newest activation.", newest)
    broken = ModelArtifact.objects.filter(scope__market=market).exclude(integrity_error="").count()
    yield metrics.gauge("models_broken", "Artifacts whose files cannot be trusted.", broken)


metrics.register("training", training)
