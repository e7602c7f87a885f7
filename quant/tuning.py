"""The search for a training's hyper-parameters: trials on out-of-fold predictions, never on the test window.

A trial is a whole purged walk-forward of the development part with other parameters of the trees (Akiba et al. 2019,
Optuna; Bergstra et al. 2011, tree-structured Parzen estimator). Trial 0 has the parameters of the spec, so the search
never chooses what looks worse than they do.

**Objective.** The share of the base rate's log loss that the calibrated out-of-fold predictions save: the artifact's
own score, and what the skill gate asks for on the test window. It is a proper score of every sample. The Sharpe ratio
of the trades at a threshold rests on the few samples above it: the best of many such ratios is mostly luck. It is
written down for each trial and not searched for; how often choosing by it would have misled is `Tuned.overfitting`.

**What a search costs in trust.** The out-of-fold numbers of the chosen trial are the best of many and promise too much.
The test window has seen none of the trials, and the deflated Sharpe gate counts them all (`quant.sharpe.Trials`).

**Repeatable.** The sampler is seeded by the spec and asked one trial after the other: equal data, settings and seed
give equal bytes, unless the time was up before the last trial, which `Tuned` says.

What was chosen is a result, as the trees are, and no part of the recipe that `quant.compatibility` compares: it changes
neither what a model is asked nor what its answer means. Neither is the number of trials. Optuna is an extra
(requirements-tuning.txt), imported when a search begins: for training processes only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quant.sharpe import probability_of_overfitting
from quant.training_spec import TrainingSpec

if TYPE_CHECKING:
    from quant.samples import Progress

NOT_INSTALLED = "TRAIN_TUNING_TRIALS needs optuna: install requirements-tuning.txt (`python3 run.py` does)"
OVERFITTING_BLOCKS = 10


@dataclass(frozen=True, slots=True)
class Range:
    """From ``low`` to ``high``, both included; ``log``: doubling counts the same everywhere."""

    low: float
    high: float
    log: bool = True


SEARCH_SPACE: Mapping[str, Range] = {
    "num_leaves": Range(4, 63),
    "min_leaf_samples": Range(20, 1_000),
    "learning_rate": Range(0.02, 0.2),
    "feature_fraction": Range(0.3, 1.0, log=False),
    "lambda_l2": Range(0.1, 100.0),
}
"""Bounds of every parameter that is searched, by its name in `TrainingSpec`; whole numbers where that has them."""


class TuningError(Exception):
    """The search cannot begin: optuna is missing, or the spec lies outside of the search space."""


class TrialState(StrEnum):
    """What became of a trial. OUT_OF_TIME: cut off before it had a value; it cannot be chosen and is not counted."""

    COMPLETE = "complete"
    OUT_OF_TIME = "out_of_time"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfFold:
    """What a trial showed: ``value`` as above, ``sharpe`` a day or None, and the float64[days] it was computed from."""

    value: float
    sharpe: float | None
    daily_returns: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial: ``number`` from 0, ``params`` by their names in `TrainingSpec`, ``seconds`` of real time."""

    number: int
    params: dict[str, Any]
    state: TrialState
    value: float | None
    sharpe: float | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The outcome of a search: ``spec`` with what was chosen.

    ``overfitting`` is the probability that the trial with the best out-of-fold Sharpe ratio of one half of the days is
    below the median of all trials in the other half (`quant.sharpe.probability_of_overfitting`): about 0.5 when the
    trials do not differ by more than luck. None with fewer than two trials or too few days.
    """

    spec: TrainingSpec
    trials: tuple[Trial, ...]
    asked: int
    overfitting: float | None

    @property
    def complete(self) -> tuple[Trial, ...]:
        """The trials that count."""
        return tuple(trial for trial in self.trials if trial.state is TrialState.COMPLETE)

    @property
    def best(self) -> Trial | None:
        """The trial that was chosen: the first of those with the largest value; None when none was completed."""
        return max(self.complete, key=lambda trial: (trial.value, -trial.number), default=None)

    def rest_of(self, progress: Progress) -> Progress:
        """Return the progress of the walk-forward that follows the search, of what the search left of ``progress``."""
        return _slot(progress, self.asked, of=self.asked + 1)

    def facts(self) -> dict[str, Any]:
        """Return what the model keeps: nothing that differs between two equal searches."""
        return {"trials": len(self.complete), "params": None if self.best is None else self.best.params}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the metrics. ``default`` is the value of the spec's own parameters, trial 0."""
        best = self.best
        return {
            **self.facts(),
            "asked": self.asked,
            "best": None if best is None else best.number,
            "value": None if best is None else best.value,
            "default": self.complete[0].value if self.complete else None,
            "overfitting": self.overfitting,
        }


TryOut = Callable[[TrainingSpec, "Progress"], OutOfFold]
"""Validates a spec on the development part, telling its progress from 0 to 1."""


class Tuner(Protocol):
    """Searches: `tune` with everything but these arguments bound."""

    def __call__(self, spec: TrainingSpec, try_out: TryOut, *, progress: Progress) -> Tuned: ...


def tune(
    spec: TrainingSpec,
    try_out: TryOut,
    *,
    progress: Progress,
    n_trials: int,
    seconds: float,
    now: Callable[[], float],
    on_trial: Callable[[Trial], object],
) -> Tuned:
    """Search around ``spec`` with ``n_trials`` trials, for at most ``seconds`` of the clock ``now`` (seconds).

    ``progress(fraction, text)`` is called within each trial, as often as ``try_out`` reports, and may raise to stop;
    a search of n trials leaves the last of n + 1 parts of it to the walk-forward that follows. ``on_trial`` is called
    after each trial. When the time is up the trial at work is cut off, and the best so far counts; without any, the
    spec stays as it was. Raises TuningError, and whatever ``try_out`` raises.
    """
    study, distributions = _begin(spec)
    deadline = now() + seconds
    trials: list[Trial] = []
    returns: list[NDArray[np.float64]] = []
    for number in range(n_trials):
        began = now()
        asked = study.ask(distributions)
        report = _slot(
            _until(deadline, now, progress), number, of=n_trials + 1, text=f"trial {number + 1} of {n_trials}"
        )
        state, shown = TrialState.COMPLETE, None
        try:
            report(0.0, "")
            shown = try_out(replace(spec, **asked.params), report)
        except _OutOfTime:
            state = TrialState.OUT_OF_TIME
        trial = Trial(
            number=number,
            params=dict(asked.params),
            state=state,
            value=None if shown is None else shown.value,
            sharpe=None if shown is None else shown.sharpe,
            seconds=now() - began,
        )
        trials.append(trial)
        on_trial(trial)
        if shown is None:
            break
        study.tell(asked, shown.value)
        returns.append(shown.daily_returns)
    tuned = Tuned(spec=spec, trials=tuple(trials), asked=n_trials, overfitting=_overfitting(returns))
    return tuned if tuned.best is None else replace(tuned, spec=replace(spec, **tuned.best.params))


class _OutOfTime(Exception):  # noqa: N818 - it says what happened
    """The time of the search is up."""


def _begin(spec: TrainingSpec) -> tuple[Any, dict[str, Any]]:
    """Return a study whose first trial has the spec's own parameters, and what it may ask for."""
    try:
        import optuna
    except ImportError as error:
        raise TuningError(f"{NOT_INSTALLED}: {error}") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # each trial is a row already
    own = {name: getattr(spec, name) for name in SEARCH_SPACE}
    distributions: dict[str, Any] = {}
    for name, bounds in SEARCH_SPACE.items():
        if not bounds.low <= own[name] <= bounds.high:
            raise TuningError(f"{name} is {own[name]:g}; the search knows {bounds.low:g} to {bounds.high:g}")
        if isinstance(own[name], int):
            distributions[name] = optuna.distributions.IntDistribution(
                int(bounds.low), int(bounds.high), log=bounds.log
            )
        else:
            distributions[name] = optuna.distributions.FloatDistribution(bounds.low, bounds.high, log=bounds.log)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=spec.seed))
    study.enqueue_trial(own)
    return study, distributions


def _slot(progress: Progress, k: int, *, of: int, text: str | None = None) -> Progress:
    """Return a progress from 0 to 1 that is the k-th of ``of`` equal parts of another, under one text if given."""
    return lambda done, stage: progress((k + done) / of, stage if text is None else text)


def _until(deadline: float, now: Callable[[], float], progress: Progress) -> Progress:
    def report(done: float, stage: str) -> None:
        progress(done, stage)
        if now() > deadline:
            raise _OutOfTime

    return report


def _overfitting(returns: list[NDArray[np.float64]]) -> float | None:
    if len(returns) < 2 or len(returns[0]) < OVERFITTING_BLOCKS:
        return None
    return float(probability_of_overfitting(np.stack(returns), blocks=OVERFITTING_BLOCKS))
