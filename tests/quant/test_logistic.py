"""The logistic regression beside the trees: scikit-learn's numbers, the same bits for a row alone, in the artifact."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from quant.logistic import CUT, REGULARISATION, LogisticBaseline, choose_weight, fit_logistic, mix
from quant.model import META_FILE, MODEL_FILE, MetaModel, ModelError
from quant.pipeline import TrainingResult, TrainingSpec
from tests.quant.test_model import make_model, rows
from tests.quant.test_pipeline import START, changed_from, random_walk, run

WIDTH = 40
BLENDED = TrainingSpec.small(blend="logistic")


def line(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of very different sizes, and outcomes that are linear in their log odds."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, WIDTH))
    y = (rng.uniform(size=n) < 1 / (1 + np.exp(-(z @ np.linspace(-0.3, 0.3, WIDTH) - 0.4)))).astype(np.int8)
    return (z * np.logspace(-4, 4, WIDTH) + 3.0).astype(np.float32), y


@pytest.fixture(scope="module")
def fitted() -> LogisticBaseline:
    X, y = line(4_000, seed=1)
    return replace(fit_logistic(X, y, np.ones(len(y))), weight=0.4)


def blended_model(fitted: LogisticBaseline) -> MetaModel:
    model = make_model()
    model.logistic = replace(
        fitted, mean=fitted.mean[:3], scale=fitted.scale[:3], coefficients=(0.3, -0.2, 0.1), weight=0.4
    )
    assert model.probe_rows is not None
    X, codes = model.probe_rows.features, model.probe_rows.symbol_codes
    model.probe_rows = replace(model.probe_rows, predictions=model.predict(X, codes))
    return model


# ------------------------------------------------------------------- the regression
def test_the_log_odds_are_those_of_scikit_learn() -> None:
    X, y = line(4_000, seed=1)
    weight = np.random.default_rng(2).uniform(0.2, 1.0, len(y))
    ours = fit_logistic(X, y, weight)
    scaler = StandardScaler().fit(X.astype(np.float64))
    z = np.clip(scaler.transform(X.astype(np.float64)), -CUT, CUT)
    oracle = LogisticRegression(C=REGULARISATION, tol=1e-8, max_iter=1_000).fit(z, y, sample_weight=weight)
    ahead, _ = line(200, seed=3)
    there = oracle.decision_function(np.clip(scaler.transform(ahead.astype(np.float64)), -CUT, CUT))
    assert ours.score(ahead) == pytest.approx(there, abs=1e-3)


def test_a_missing_value_adds_nothing_and_an_extreme_one_no_more_than_five_deviations(fitted: LogisticBaseline) -> None:
    average = np.array([fitted.mean], dtype=np.float32)
    missing, far = average.copy(), average.copy()
    missing[0, 3] = np.nan
    far[0, 3] = 1e30
    assert fitted.score(missing) == pytest.approx(fitted.score(average), abs=1e-3)  # float32's rounding
    assert fitted.score(far) - fitted.score(average) == pytest.approx(CUT * fitted.coefficients[3], abs=1e-3)
    assert fitted.score(np.full((1, WIDTH), np.nan, dtype=np.float32)) == pytest.approx(fitted.intercept)


def test_scales_come_from_the_known_values_and_a_constant_says_nothing() -> None:
    X, y = line(3_000, seed=4)
    X[:, 5] = 7.0
    X[:, 6] = np.nan
    X[::2, 7] = np.nan
    ours = fit_logistic(X, y, np.ones(len(y)))
    assert ours.mean[7] == pytest.approx(float(np.nanmean(X[:, 7].astype(np.float64))))
    assert ours.scale[7] == pytest.approx(float(np.nanstd(X[:, 7].astype(np.float64))))
    assert ours.coefficients[5] == ours.coefficients[6] == 0.0
    assert ours.coefficients[0] < -0.1
    other = X.copy()
    other[:, 5] = -1e9
    assert ours.score(other).tolist() == ours.score(X).tolist()


@pytest.mark.parametrize(
    "changes", [{"weight": 1.1}, {"scale": (0.0,) * WIDTH}, {"mean": (0.0,)}, {"intercept": float("nan")}]
)
def test_numbers_that_make_no_sense_are_refused(fitted: LogisticBaseline, changes: dict) -> None:
    with pytest.raises(ValueError, match=r"share|above 0|one each|finite"):
        replace(fitted, **changes)


# ------------------------------------------------------------------- I13
@given(st.integers(1, 600), st.integers(0, 10_000))
def test_i13_the_bits_of_a_row_do_not_depend_on_the_rows_beside_it(fitted: LogisticBaseline, n: int, seed: int) -> None:
    ahead, _ = line(n, seed=seed)
    ahead[np.random.default_rng(seed).random(ahead.shape) < 0.05] = np.nan
    whole = fitted.score(ahead)
    for row in {0, n // 3, n - 1}:
        assert fitted.score(ahead[row : row + 1])[0] == whole[row]
        assert fitted.score(np.asfortranarray(ahead)[row:])[0] == whole[row]


def test_i13_a_blended_prediction_is_the_same_alone_and_among_others(fitted: LogisticBaseline) -> None:
    model = blended_model(fitted)
    X, codes = rows(500)
    together = model.predict(X, codes)
    alone = [float(model.predict(X[[i]], codes[[i]])[0]) for i in range(500)]
    assert alone == together.tolist()
    assert not np.array_equal(together, make_model().predict(X, codes))  # the blend is in there


# ------------------------------------------------------------------- the share
def test_the_share_follows_what_the_out_of_fold_predictions_say() -> None:
    rng = np.random.default_rng(5)
    truth = rng.normal(size=8_000)
    y = (rng.uniform(size=8_000) < 1 / (1 + np.exp(-truth))).astype(np.int8)
    noise = rng.normal(size=8_000)
    one = np.ones(8_000)
    assert choose_weight(truth, noise, y, one) == 0.0
    assert choose_weight(noise, truth, y, one) == 1.0
    assert 0.2 <= choose_weight(truth + noise, truth + rng.normal(size=8_000), y, one) <= 0.8
    assert choose_weight(truth, truth, y, one) == 0.0  # equals: the trees
    assert mix(truth, noise, 0.25) == pytest.approx(0.75 * truth + 0.25 * noise)


# ------------------------------------------------------------------- the artifact
def test_a_blend_is_saved_loaded_and_probed(fitted: LogisticBaseline, tmp_path: Path) -> None:
    model = blended_model(fitted)
    model.save(tmp_path)
    loaded = MetaModel.load(tmp_path)
    loaded.probe()
    assert loaded.logistic == model.logistic
    assert (loaded.blend, make_model().blend) == ("logistic", "none")
    X, codes = rows()
    assert loaded.predict(X, codes).tolist() == model.predict(X, codes).tolist()


def test_an_artifact_without_a_blend_is_what_it_always_was(tmp_path: Path) -> None:
    make_model().save(tmp_path)
    meta = json.loads((tmp_path / META_FILE).read_text())
    assert meta["format_version"] == 1
    assert "logistic" not in meta
    assert MetaModel.load(tmp_path).logistic is None


@pytest.mark.parametrize(
    "damage, error",
    [("coefficient", "probe prediction is off"), ("missing", "logistic"), ("short", "2 coefficients for 3 features")],
)
def test_a_changed_blend_is_refused(fitted: LogisticBaseline, tmp_path: Path, damage: str, error: str) -> None:
    blended_model(fitted).save(tmp_path)
    meta = json.loads((tmp_path / META_FILE).read_text())
    if damage == "coefficient":
        meta["logistic"]["coefficients"][0] += 0.01
    elif damage == "missing":
        del meta["logistic"]
    else:
        for name in ("mean", "scale", "coefficients"):
            meta["logistic"][name].pop()
    (tmp_path / META_FILE).write_text(json.dumps(meta))
    with pytest.raises(ModelError, match=error):
        MetaModel.load(tmp_path).probe()


# ------------------------------------------------------------------- the training
@pytest.fixture(scope="module")
def result() -> TrainingResult:
    return run(random_walk(6, 100, seed=1), BLENDED)


def test_a_blended_training_gives_the_same_bytes_again(result: TrainingResult, tmp_path: Path) -> None:
    for name, each in (("first", result), ("second", run(random_walk(6, 100, seed=1), BLENDED))):
        (tmp_path / name).mkdir()
        each.model.save(tmp_path / name)
    for file in (MODEL_FILE, META_FILE):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    loaded = MetaModel.load(tmp_path / "first")
    loaded.probe()
    assert loaded.logistic is not None
    assert loaded.logistic.weight == result.metrics["logistic_share"]
    assert TrainingSpec.from_dict(dict(loaded.facts["spec"])) == BLENDED


def test_i14_the_test_window_changes_neither_the_logistic_regression_nor_its_share(result: TrainingResult) -> None:
    panel = random_walk(6, 100, seed=1)
    test_start = (result.metrics["windows"]["test_start_ms"] - START) // panel.step_ms - 1
    later = run(changed_from(panel, test_start), BLENDED)
    assert later.model.logistic == result.model.logistic
    assert later.model.calibration == result.model.calibration
    assert later.metrics["test"] != result.metrics["test"]


def test_the_trees_of_a_blend_are_those_without_one(result: TrainingResult) -> None:
    alone = run(random_walk(6, 100, seed=1))
    assert alone.model.booster_text == result.model.booster_text
    assert alone.model.logistic is None
    assert alone.metrics["logistic_share"] is None
