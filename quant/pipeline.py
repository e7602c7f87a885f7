"""From a panel of candles to a judged model: features, labels, walk-forward, calibration, threshold, test, gates.

The order of time, oldest first::

    | walk-forward folds: fit | early stopping | out-of-fold predictions | ...  | embargo | test |
    |<------------------ development ------------------------------------>|     |         |<---->|

- Each fold grows trees on what its labels had shown before the fold, stops them early on a purged newest part of that,
  and predicts the fold. So every out-of-fold prediction comes from trees that saw neither the sample nor what follows.
  With `blend` a logistic regression is fitted on the rows that the trees grow on, and predicts beside them; its share
  is chosen by the out-of-fold predictions of both.
- The final trees grow on the whole development part, with the median number of trees of the folds. Platt calibration
  and the threshold come from the out-of-fold predictions: data that the trees which predicted it did not see.
- The test window is used once, to judge. **The model that was tested is the model that is shipped**: nothing is fitted
  again with the test window, because the numbers of the gates would then belong to another model than the one that
  trades. The price is that the trees do not know the newest fifth of the data.

Imports scikit-learn and LightGBM: for training processes only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.calibration import fit_platt
from quant.drift import make_reference, window_of
from quant.gates import GateBounds, GateResult, UnseenWindow, evaluate_gates
from quant.logistic import choose_weight, fit_logistic, mix
from quant.measures import daily_returns, measure, threshold_overfitting
from quant.metrics import calibration_curve
from quant.model import FitBooster, MetaModel, Probe, encode_features, fit_booster
from quant.panel import Panel
from quant.reasons import reason
from quant.samples import MakeSamples, Progress, Samples, TrainingError, make_samples
from quant.sharpe import Trials
from quant.timeframes import DAY_MS, timeframe_ms
from quant.training_spec import TRAINING_MODES, TrainingSpec
from quant.tuning import OutOfFold, Tuned, Tuner
from quant.validation import PurgedWalkForward

__all__ = ["TRAINING_MODES", "TrainingError", "TrainingResult", "TrainingSpec", "choose_threshold", "train"]

THRESHOLD_CANDIDATES = 50
MIN_TRADED_SHARE = 0.02
PROBE_ROWS = 8
DRIFT_WINDOW_DAYS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """An earlier training's test window (ms) and the Sharpe ratio a day that it showed there, None without one."""

    test_start_ms: int
    test_end_ms: int
    sharpe: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """A model with its measurements. ``dropped`` says for each symbol left out why; times are ms.

    ``reference`` is what the features of the development samples looked like (`quant.drift`).
    """

    model: MetaModel
    metrics: dict[str, Any]
    gates: tuple[GateResult, ...]
    symbols: tuple[str, ...]
    panel_symbols: tuple[str, ...]
    dropped: dict[str, str]
    data_start_ms: int
    data_end_ms: int
    data_hash: str
    champion_metrics: dict[str, Any] | None
    reference: dict[str, Any] = field(default_factory=dict)

    @property
    def gates_passed(self) -> bool:
        return all(gate.passed for gate in self.gates)

    @property
    def score(self) -> float:
        """Validation score: log loss saved by the out-of-fold predictions, as a share of their own base rate's loss."""
        return float(self.metrics["validation"]["relative_skill"])


def train(
    panel: Panel,
    spec: TrainingSpec,
    *,
    progress: Progress,
    champion: MetaModel | None = None,
    gate_bounds: GateBounds | None = None,
    looks: Iterable[Look] = (),
    fit: FitBooster = fit_booster,
    sample: MakeSamples = make_samples,
    tuner: Tuner | None = None,
) -> TrainingResult:
    """Train, calibrate, choose the threshold, test and judge.

    ``progress(fraction, text)`` is called as work advances, also inside the fits, and may raise to stop them.
    A ``champion`` is compared on the test rows that it has not seen and whose symbols it covers. ``looks`` are the
    earlier trainings of the scope: those whose test window overlaps this one's have looked at it before.
    ``fit`` grows the trees, here or elsewhere; ``sample`` makes the samples, honest or shuffled on purpose.
    A ``tuner`` searches for other parameters of the trees first, on the development part (`quant.tuning`).
    Raises TrainingError with a reason when the data does not allow a training.
    """
    bounds = gate_bounds or GateBounds()
    if panel.step_ms != timeframe_ms(spec.timeframe):
        raise TrainingError(reason("WRONG_TIMEFRAME", candles_ms=panel.step_ms, setting=spec.timeframe))
    if spec.training_mode == "single_symbol" and panel.n_symbols != 1:
        raise TrainingError(reason("ONE_SYMBOL_ONLY", training_mode=spec.training_mode, symbols=panel.n_symbols))
    data = sample(panel, spec, progress=progress)
    develop, test, n_symbols = data.development, data.test, len(data.symbols)
    day = max(1, DAY_MS // panel.step_ms)
    block = max(2 * spec.label.horizon, day)

    def walking(done: float, text: str) -> None:
        progress(0.2 + 0.5 * done, text)

    tuned: Tuned | None = None
    report: Progress = walking
    if tuner is not None:

        def try_out(candidate: TrainingSpec, report: Progress) -> OutOfFold:
            return _try_out(
                develop, n_symbols, candidate, report, fit, min_trades=bounds.min_trades, block=block, day=day
            )

        tuned = tuner(spec, try_out, progress=walking)
        spec, report = tuned.spec, tuned.rest_of(walking)
    validation, raw, n_trees, share = _walk_forward(develop, n_symbols, spec, report, fit)
    calibration = fit_platt(raw, validation.y, validation.weight)
    validated = calibration.apply(raw)
    threshold = _threshold(validation, validated, min_trades=bounds.min_trades)
    booster = _fit(
        fit, develop, n_symbols, spec, n_trees=n_trees, report=lambda done: progress(0.7 + 0.25 * done, "final model")
    )
    model = MetaModel(
        booster_text=booster.model_to_string(),
        calibration=calibration,
        threshold=threshold,
        symbol_encoding=spec.symbol_encoding,
        symbols=data.symbols,
        panel_symbols=panel.symbols,
        feature_names=spec.schema.names,
        required_features=tuple(np.array(spec.schema.names)[data.required].tolist()),
        fit_end_ms=_close_ms(panel, int(develop.t1.max())),
        facts={"spec": spec.to_dict(), "schema_hash": spec.schema.hash, "label_hash": spec.label.hash}
        | ({} if tuned is None else {"tuned": tuned.facts()}),
        logistic=None if share is None else replace(fit_logistic(develop.X, develop.y, develop.weight), weight=share),
    )
    progress(0.96, "test")
    score = model.score(test.X, test.code, num_threads=spec.num_threads)
    probability = calibration.apply(score)  # as `predict`: no row of the samples lacks a required feature
    rows = np.linspace(0, len(test) - 1, PROBE_ROWS).round().astype(np.int64)
    model.probe_rows = Probe(
        features=test.X[rows], symbol_codes=test.code[rows], predictions=model.predict(test.X[rows], test.code[rows])
    )
    asked = None if champion is None else _ask_champion(champion, test, data.symbols, panel, spec)
    window = UnseenWindow(
        y=test.y,
        probability=probability,
        net_return=test.net_return,
        time=test.t0,
        exit_time=test.t1,
        allowed=test.allowed,
        champion=asked,
    )
    windows = {
        "development_start_ms": _close_ms(panel, int(develop.t0[0])),
        "development_end_ms": model.fit_end_ms,
        "test_start_ms": _close_ms(panel, data.test_start),
        "test_end_ms": _close_ms(panel, int(test.t1.max())),
    }
    trials = Trials.of(
        [look.sharpe for look in looks if look.test_end_ms > windows["test_start_ms"]],
        tuning=0 if tuned is None else len(tuned.complete),
    )
    gates = evaluate_gates(window, threshold=threshold, block=block, day=day, bounds=bounds, trials=trials)
    champion_metrics = None
    if champion is not None and asked is not None and np.isfinite(asked).any():
        seen = np.flatnonzero(np.isfinite(asked))
        champion_metrics = measure(test.take(seen), asked[seen], champion.threshold, block=block, day=day)
    metrics = {
        "threshold": threshold,
        "trees": n_trees,
        "logistic_share": share,
        "windows": windows,
        "looks": trials.count - trials.tuning,
        "tuning": None if tuned is None else tuned.to_dict(),
        "development_samples": len(develop),
        "validation": measure(validation, validated, threshold, block=block, day=day, score=raw),
        "test": measure(test, probability, threshold, block=block, day=day, score=score),
        "threshold_overfitting": threshold_overfitting(validation, validated, day=day),
        "calibration_curve": calibration_curve(test.y, probability),
        "importance": _importance(booster),
    }
    progress(1.0, "judged")
    return TrainingResult(
        model=model,
        metrics=metrics,
        gates=gates,
        symbols=data.symbols,
        panel_symbols=panel.symbols,
        dropped=data.dropped,
        data_start_ms=int(panel.open_time[0]),
        data_end_ms=int(panel.open_time[-1]) + panel.step_ms,
        data_hash=panel.content_hash(),
        champion_metrics=champion_metrics,
        reference=make_reference(
            develop.X,
            spec.schema.names,
            develop.t0,
            window=window_of(int(develop.t0[-1] - develop.t0[0]) + 1, DRIFT_WINDOW_DAYS * day),
        ),
    )


def choose_threshold(
    probability: NDArray[np.float64],
    net_return: NDArray[np.float64],
    weight: NDArray[np.float64],
    *,
    min_trades: int,
) -> float:
    """Return the threshold whose trades earned the most in sum, weighted by uniqueness, on validation data.

    At least ``min_trades`` and 2 % of the signals must reach it, so that a few lucky ones cannot choose it. With no
    profitable threshold the highest allowed one is returned: the gates will refuse, and a test shows how badly.
    """
    if len(probability) == 0:
        return 1.0
    floor = min(len(probability), max(min_trades, math.ceil(MIN_TRADED_SHARE * len(probability))))
    order = np.argsort(-probability, kind="stable")
    earned = np.cumsum((net_return * weight)[order])
    ranked = probability[order]
    # A threshold takes every signal with an equal probability, so only the last of equals can be a cut.
    cuts = np.flatnonzero(np.append(ranked[:-1] != ranked[1:], True))
    cuts = cuts[cuts >= floor - 1]
    if len(cuts) > THRESHOLD_CANDIDATES:
        cuts = cuts[np.linspace(0, len(cuts) - 1, THRESHOLD_CANDIDATES).round().astype(np.int64)]
    best = cuts[int(np.argmax(earned[cuts]))] if earned[cuts].max() > 0 else cuts[0]
    return float(ranked[best])


def _threshold(samples: Samples, probability: NDArray[np.float64], *, min_trades: int) -> float:
    tradable = np.flatnonzero(samples.allowed)
    return choose_threshold(
        probability[tradable], samples.net_return[tradable], samples.weight[tradable], min_trades=min_trades
    )


def _try_out(
    develop: Samples,
    n_symbols: int,
    spec: TrainingSpec,
    progress: Progress,
    fit: FitBooster,
    *,
    min_trades: int,
    block: int,
    day: int,
) -> OutOfFold:
    """What a spec shows out of fold, measured as the validation of the model is."""
    samples, raw, _, _ = _walk_forward(develop, n_symbols, spec, progress, fit)
    probability = fit_platt(raw, samples.y, samples.weight).apply(raw)
    threshold = _threshold(samples, probability, min_trades=min_trades)
    numbers = measure(samples, probability, threshold, block=block, day=day)
    return OutOfFold(
        value=numbers["relative_skill"],
        sharpe=numbers["sharpe"],
        daily_returns=daily_returns(samples, probability, threshold, day=day),
    )


def _walk_forward(
    develop: Samples, n_symbols: int, spec: TrainingSpec, progress: Progress, fit: FitBooster
) -> tuple[Samples, NDArray[np.float64], int, float | None]:
    """Return the samples of all folds, their out-of-fold raw scores, the median number of trees, and the share.

    The share is that of the logistic regression in those scores; None without a blend.
    """
    rows: list[NDArray[np.int64]] = []
    scores: list[NDArray[np.float64]] = []
    beside: list[NDArray[np.float64]] = []
    trees: list[int] = []
    splitter = PurgedWalkForward(n_splits=spec.n_splits, embargo=spec.embargo_bars)
    try:
        folds = list(splitter.split(groups=np.column_stack([develop.t0, develop.t1])))
    except ValueError as error:  # too few times for the folds
        raise TrainingError(reason("TOO_FEW_SAMPLES", samples=len(develop), why=error)) from error
    for k, (past, fold) in enumerate(folds):
        known, ahead = develop.take(past), develop.take(fold)
        stop_start = _quantile_time(known.t0, 1.0 - spec.stop_fraction)
        grow = known.take(np.flatnonzero(known.t1 + spec.embargo_bars < stop_start))
        stop = known.take(np.flatnonzero(known.t0 >= stop_start))
        for part in (grow, stop):
            if len(part) == 0 or part.y.min() == part.y.max():
                raise TrainingError(reason("TOO_FEW_SAMPLES", fold=k + 1, grow=len(grow), stop=len(stop)))

        def report(done: float, k: int = k) -> None:
            progress((k + done) / spec.n_splits, f"fold {k + 1} of {spec.n_splits}")

        booster = _fit(fit, grow, n_symbols, spec, n_trees=spec.max_trees, stop=stop, report=report)
        trees.append(max(1, booster.best_iteration))
        rows.append(fold)
        scores.append(_raw_score(booster, ahead, n_symbols, spec))
        if spec.blend == "logistic":
            beside.append(fit_logistic(grow.X, grow.y, grow.weight).score(ahead.X))
    validation = develop.take(np.concatenate(rows))
    if validation.y.min() == validation.y.max():
        raise TrainingError(reason("ONE_OUTCOME_ONLY", window="validation", samples=len(validation)))
    raw, share = np.concatenate(scores), None
    if beside:
        logistic = np.concatenate(beside)
        share = choose_weight(raw, logistic, validation.y, validation.weight)
        raw = mix(raw, logistic, share)
    return validation, raw, int(np.median(trees)), share


def _quantile_time(t0: NDArray[np.int64], share: float) -> int:
    times = np.unique(t0)
    return int(times[min(len(times) - 1, int(len(times) * share))])


def _fit(
    fit: FitBooster,
    samples: Samples,
    n_symbols: int,
    spec: TrainingSpec,
    *,
    n_trees: int,
    report: Callable[[float], None],
    stop: Samples | None = None,
) -> Any:
    return fit(
        features=samples.X,
        symbol_codes=samples.code,
        y=samples.y,
        weight=samples.weight,
        encoding=spec.symbol_encoding,
        n_symbols=n_symbols,
        feature_names=spec.schema.names,
        params=spec.lightgbm_params(),
        n_trees=n_trees,
        stop_on=None if stop is None else (stop.X, stop.code, stop.y, stop.weight),
        stop_rounds=spec.stop_rounds,
        on_tree=lambda tree: report(tree / n_trees),
    )


def _raw_score(booster: Any, samples: Samples, n_symbols: int, spec: TrainingSpec) -> NDArray[np.float64]:
    X = encode_features(samples.X, samples.code, encoding=spec.symbol_encoding, n_symbols=n_symbols)
    raw = booster.predict(X, raw_score=True, num_threads=spec.num_threads)
    return np.asarray(raw, dtype=np.float64)


def _ask_champion(
    champion: MetaModel, test: Samples, symbols: tuple[str, ...], panel: Panel, spec: TrainingSpec
) -> NDArray[np.float64]:
    """The champion's probability for the test rows that it covers and has not seen, else NaN.

    Everything that the champion was fitted on ended at its ``fit_end_ms``; its own test window was only looked at.
    A champion with other features cannot be asked at all. One that was trained over another panel sees market-wide
    features that differ a little from its own; that is how it would trade on this panel.
    """
    answer = np.full(len(test), np.nan)
    if champion.feature_names != spec.schema.names or champion.facts.get("schema_hash") != spec.schema.hash:
        return answer
    code = champion.codes_for(symbols)[test.code]
    decided_ms = panel.open_time[test.t0] + panel.step_ms
    rows = np.flatnonzero((code >= 0) & (decided_ms >= champion.fit_end_ms))
    answer[rows] = champion.predict(test.X[rows], code[rows], num_threads=spec.num_threads)
    return answer


def _importance(booster: Any) -> dict[str, float]:
    """Share of the gain of each feature that was used, largest first."""
    gains = dict(zip(booster.feature_name(), booster.feature_importance("gain").tolist(), strict=True))
    total = sum(gains.values()) or 1.0
    return {name: gain / total for name, gain in sorted(gains.items(), key=lambda item: -item[1]) if gain > 0}


def _close_ms(panel: Panel, bar: int) -> int:
    return int(panel.open_time[0]) + (bar + 1) * panel.step_ms
