"""The search for hyper-parameters: repeatable, blind to the test window, bounded, and paid for at the gates."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.model import META_FILE, MODEL_FILE, MetaModel
from quant.panel import Panel
from quant.pipeline import Look, TrainingResult, train
from quant.samples import Progress
from quant.sharpe import SharpeRatio, Trials, deflated_sharpe, probabilistic_sharpe
from quant.timeframes import HOUR_MS
from quant.training_spec import TrainingSpec
from quant.tuning import SEARCH_SPACE, OutOfFold, Trial, TrialState, TryOut, Tuned, TuningError, tune
from tests.quant.test_pipeline import START, changed_from, random_walk, simulated

SMALL = TrainingSpec.small()


def quiet(done: float, text: str) -> None:
    """No progress is shown."""


def searching(n_trials: int, trials: list[Trial] | None = None, **changes: Any) -> Any:
    """A tuner on a clock that stands still."""
    bound = {"seconds": 1.0, "now": lambda: 0.0, "on_trial": [].append if trials is None else trials.append} | changes
    return functools.partial(tune, n_trials=n_trials, **bound)


def search(try_out: TryOut, n_trials: int, *, progress: Progress = quiet, **changes: Any) -> Tuned:
    return searching(n_trials, **changes)(SMALL, try_out, progress=progress)  # type: ignore[no-any-return]


def hill(spec: TrainingSpec, progress: Progress) -> OutOfFold:
    """Best far from the defaults: 40 leaves and a learning rate of 0.05."""
    value = -abs(np.log(spec.num_leaves / 40)) - abs(np.log(spec.learning_rate / 0.05))
    return OutOfFold(value=float(value), sharpe=0.1, daily_returns=np.linspace(-1, 1, 40) + value)


# ------------------------------------------------------------------- the search alone
def test_a_search_finds_better_parameters_than_the_defaults_within_the_bounds() -> None:
    tuned = search(hill, 40)
    assert tuned.best is not None
    assert tuned.best.value is not None
    assert tuned.best.value > -0.5 > hill(SMALL, quiet).value
    assert {name: getattr(tuned.spec, name) for name in SEARCH_SPACE} == tuned.best.params
    for trial in tuned.trials:
        for name, bounds in SEARCH_SPACE.items():
            assert bounds.low <= trial.params[name] <= bounds.high
            assert isinstance(trial.params[name], type(getattr(SMALL, name)))
    assert replace(tuned.spec, **{name: getattr(SMALL, name) for name in SEARCH_SPACE}) == SMALL, "nothing else changed"


def test_the_first_trial_has_the_parameters_of_the_spec_and_wins_a_tie() -> None:
    tuned = search(lambda spec, progress: replace(hill(spec, progress), value=0.5), 5)
    assert tuned.best is tuned.trials[0]
    assert tuned.spec == SMALL
    assert tuned.to_dict()["default"] == tuned.to_dict()["value"] == 0.5


def test_the_same_seed_asks_the_same_and_another_one_something_else() -> None:
    first, again = (search(hill, 15).trials for _ in range(2))
    assert first == again
    other = searching(15)(replace(SMALL, seed=SMALL.seed + 1), hill, progress=quiet)
    assert [trial.params for trial in other.trials[1:]] != [trial.params for trial in first[1:]]


def test_progress_is_told_within_each_trial_rises_and_may_stop_the_search() -> None:
    def slow(spec: TrainingSpec, progress: Progress) -> OutOfFold:
        for done in (0.25, 0.5, 0.75, 1.0):
            progress(done, "fold")
        return hill(spec, progress)

    seen: list[tuple[float, str]] = []
    tuned = search(slow, 3, progress=lambda done, text: seen.append((done, text)))
    tuned.rest_of(lambda done, text: seen.append((done, text)))(1.0, "fold 2 of 2")
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert [text for _, text in seen[::5]] == ["trial 1 of 3", "trial 2 of 3", "trial 3 of 3", "fold 2 of 2"]
    assert seen[-1][0] == 1.0

    class RunLostError(Exception):
        pass

    def stop(done: float, text: str) -> None:
        if text == "trial 2 of 3" and done > 0.3:
            raise RunLostError

    trials: list[Trial] = []
    with pytest.raises(RunLostError):
        search(slow, 3, progress=stop, trials=trials)
    assert [trial.number for trial in trials] == [0], "the trial that was stopped has shown nothing"


def ticking(step: float) -> Callable[[], float]:
    ticks = itertools.count()
    return lambda: next(ticks) * step


def test_when_the_time_is_up_the_trial_at_work_is_cut_off_and_the_best_so_far_counts() -> None:
    trials: list[Trial] = []
    tuned = search(hill, 100, trials=trials, seconds=10.0, now=ticking(1.0))
    assert trials == list(tuned.trials)
    assert 2 <= len(trials) < 8
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * (len(trials) - 1) + [TrialState.OUT_OF_TIME]
    assert trials[-1].value is None
    assert trials[-1].seconds > 0
    assert tuned.best in tuned.complete
    assert tuned.to_dict()["trials"] == len(trials) - 1 < tuned.to_dict()["asked"] == 100


def test_without_one_whole_trial_the_spec_stays_as_it_was() -> None:
    tuned = search(hill, 5, seconds=0.5, now=ticking(1.0))
    assert (tuned.spec, tuned.best, tuned.complete, tuned.overfitting) == (SMALL, None, (), None)
    assert tuned.facts() == {"trials": 0, "params": None}


def test_choosing_among_trials_that_differ_by_luck_is_said_to_be_luck() -> None:
    rng = np.random.default_rng(3)

    def luck(spec: TrainingSpec, progress: Progress) -> OutOfFold:
        return OutOfFold(value=0.0, sharpe=0.0, daily_returns=rng.normal(0, 0.01, 200))

    def skill(spec: TrainingSpec, progress: Progress) -> OutOfFold:
        return replace(luck(spec, progress), daily_returns=rng.normal(0.02 * (spec == SMALL), 0.01, 200))

    by_luck, by_skill = search(luck, 10).overfitting, search(skill, 10).overfitting
    assert by_luck is not None
    assert by_skill is not None
    assert by_skill < 0.05 < 0.25 < by_luck
    assert search(luck, 1).overfitting is None, "one trial was not chosen from anything"


def test_without_optuna_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(TuningError, match=r"TRAIN_TUNING_TRIALS needs optuna: install requirements-tuning\.txt"):
        search(hill, 2)


@pytest.mark.parametrize("name", sorted(SEARCH_SPACE))
def test_the_defaults_lie_within_the_search_space_and_a_spec_outside_is_named(name: str) -> None:
    for spec in (TrainingSpec(), SMALL):
        assert SEARCH_SPACE[name].low <= getattr(spec, name) <= SEARCH_SPACE[name].high
    outside = replace(SMALL, **{name: type(getattr(SMALL, name))(SEARCH_SPACE[name].low / 2)})
    with pytest.raises(TuningError, match=f"{name} is .*; the search knows"):
        searching(2)(outside, hill, progress=quiet)


# ------------------------------------------------------------------- in a training
@pytest.fixture(scope="module")
def panel() -> Panel:
    return simulated(6, 120, 3, learnable=True)


def tuned_training(panel: Panel, n_trials: int, trials: list[Trial] | None = None, **changes: Any) -> TrainingResult:
    return train(panel, SMALL, progress=quiet, tuner=searching(n_trials, trials), **changes)


@pytest.fixture(scope="module")
def result(panel: Panel) -> TrainingResult:
    return tuned_training(panel, 6)


def test_the_same_data_settings_and_seed_give_the_same_bytes(
    panel: Panel, result: TrainingResult, tmp_path: Path
) -> None:
    for name, each in (("first", result), ("second", tuned_training(panel, 6))):
        (tmp_path / name).mkdir()
        each.model.save(tmp_path / name)
    for file in (MODEL_FILE, META_FILE):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    facts = MetaModel.load(tmp_path / "first").facts
    chosen = TrainingSpec.from_dict(dict(facts["spec"]))
    assert facts["tuned"] == {"trials": 6, "params": {name: getattr(chosen, name) for name in SEARCH_SPACE}}
    assert facts["schema_hash"] == SMALL.schema.hash
    assert facts["label_hash"] == SMALL.label.hash


def test_the_score_of_the_model_is_the_value_of_the_chosen_trial(result: TrainingResult) -> None:
    tuning = result.metrics["tuning"]
    assert result.score == tuning["value"] >= tuning["default"]
    assert tuning["best"] != 0, "something better than the defaults was found here"
    assert 0 <= tuning["overfitting"] <= 1


def test_one_trial_gives_the_trees_of_a_training_without_a_search(panel: Panel) -> None:
    plain = train(panel, SMALL, progress=quiet)
    assert plain.metrics["tuning"] is None
    assert "tuned" not in plain.model.facts
    assert tuned_training(panel, 1).model.booster_text == plain.model.booster_text


def test_i14_a_search_sees_nothing_of_the_test_window() -> None:
    before: list[Trial] = []
    after: list[Trial] = []
    panel = random_walk(6, 100, seed=1)
    first = tuned_training(panel, 3, before)
    test_start = (first.metrics["windows"]["test_start_ms"] - START) // HOUR_MS - 1
    other = tuned_training(changed_from(panel, test_start), 3, after)
    assert before == after
    assert other.metrics["tuning"] == first.metrics["tuning"]
    assert other.metrics["test"] != first.metrics["test"]


# ------------------------------------------------------------------- what it costs at the gates
def test_a_ratio_that_is_believed_without_a_search_is_not_after_many_trials() -> None:
    ratio = SharpeRatio(value=0.20, skew=0.0, kurtosis=3.0, n=100)
    left = [deflated_sharpe(ratio, Trials.of([], tuning=n)) for n in (0, 1, 5, 20, 200)]
    assert left[0] == probabilistic_sharpe(ratio) > 0.95
    assert left == sorted(left, reverse=True)
    assert left[-1] < 0.5


def test_trials_and_looks_add_up_and_only_looks_say_how_ratios_scatter() -> None:
    assert Trials.of([0.1, 0.2], tuning=20) == Trials(23, None, 20)
    assert Trials.of([0.1] * 5, tuning=20) == Trials(26, 0.0, 20)


def test_the_gate_counts_the_looks_and_the_trials_and_names_both(panel: Panel, result: TrainingResult) -> None:
    start, end = result.metrics["windows"]["test_start_ms"], result.metrics["windows"]["test_end_ms"]
    looks = [Look(test_start_ms=start, test_end_ms=end, sharpe=0.1)]
    again = tuned_training(panel, 6, looks=looks)
    alone, later = ({gate.name: gate for gate in each.gates}["deflated_sharpe"] for each in (result, again))
    assert (result.metrics["looks"], again.metrics["looks"]) == (1, 2)
    assert "at the first look at this window and 6 tuning trials" in alone.text
    assert "at look number 2 at this window and 6 tuning trials" in later.text
    assert later.value <= alone.value
