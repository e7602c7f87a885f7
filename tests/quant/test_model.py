"""Artifacts: the same bytes for the same model, the same predictions after a load, and no way past a change."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.calibration import PlattCalibration, fit_platt
from quant.model import META_FILE, MODEL_FILE, MetaModel, ModelError, Probe, encode_features, fit_booster

NAMES = ("momentum", "noise", "other")
SYMBOLS = ("A/USDT:USDT", "B/USDT:USDT", "C/USDT:USDT")
PARAMS = {"learning_rate": 0.2, "num_leaves": 7, "min_data_in_leaf": 20, "num_threads": 1, "seed": 3}


def make_model(encoding: str = "index", *, n_trees: int = 12, n_features: int = len(NAMES)) -> MetaModel:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3_000, n_features)).astype(np.float32)
    codes = rng.integers(0, len(SYMBOLS), 3_000).astype(np.int32)
    y = (X[:, 0] + (codes == 1) + rng.normal(size=3_000) > 0.5).astype(np.int8)
    names = NAMES if n_features == len(NAMES) else tuple(f"f{i}" for i in range(n_features))
    booster = fit_booster(
        features=X,
        symbol_codes=codes,
        y=y,
        weight=np.ones(3_000),
        encoding=encoding,
        n_symbols=len(SYMBOLS),
        feature_names=names,
        params=PARAMS,
        n_trees=n_trees,
    )
    model = MetaModel(
        booster_text=booster.model_to_string(),
        calibration=PlattCalibration(slope=0.9, intercept=-0.1),
        threshold=0.55,
        symbol_encoding=encoding,
        symbols=SYMBOLS,
        panel_symbols=(*SYMBOLS, "D/USDT:USDT"),
        feature_names=names,
        required_features=names[:2],
        fit_end_ms=1_700_000_000_000,
        facts={"timeframe": "1h"},
    )
    model.probe_rows = Probe(features=X[:5], symbol_codes=codes[:5], predictions=model.predict(X[:5], codes[:5]))
    return model


@pytest.fixture(scope="module", params=["index", "one_hot"])
def model(request: pytest.FixtureRequest) -> MetaModel:
    return make_model(request.param)


def rows(n: int = 50, seed: int = 9) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3)).astype(np.float32), rng.integers(0, 3, n).astype(np.int32)


def test_a_loaded_model_predicts_what_the_saved_one_did(model: MetaModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    loaded = MetaModel.load(tmp_path)
    loaded.probe()
    X, codes = rows()
    assert loaded.predict(X, codes).tolist() == model.predict(X, codes).tolist()
    for name in ("threshold", "symbols", "panel_symbols", "required_features", "fit_end_ms", "facts"):
        assert getattr(loaded, name) == getattr(model, name)


def test_the_same_training_gives_the_same_bytes(model: MetaModel, tmp_path: Path) -> None:
    for name, each in (("first", model), ("second", make_model(model.symbol_encoding))):
        (tmp_path / name).mkdir()
        each.save(tmp_path / name)
    for file in (MODEL_FILE, META_FILE):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_the_model_uses_the_symbol(model: MetaModel) -> None:
    X = np.zeros((2, 3), dtype=np.float32)
    first, second = model.predict(X, np.array([0, 1], dtype=np.int32))
    assert second > first + 0.1


@pytest.mark.parametrize("code", [-1, 3, 1_000])
def test_an_unknown_symbol_is_an_error_and_not_a_guess(model: MetaModel, code: int) -> None:
    X, codes = rows(4)
    codes[2] = code
    with pytest.raises(ValueError, match=f"symbol code {code} in row 2 is unknown"):
        model.predict(X, codes)


def test_codes_for_symbols_that_are_not_covered_are_negative(model: MetaModel) -> None:
    assert model.codes_for(("B/USDT:USDT", "D/USDT:USDT", "A/USDT:USDT")).tolist() == [1, -1, 0]


def test_f42_a_row_without_a_required_feature_or_with_an_infinite_one_is_not_predicted(model: MetaModel) -> None:
    X, codes = rows(5)
    X[1, 0] = np.nan  # required
    X[2, 2] = np.nan  # was absent for some symbol in training: the trees know that
    X[3, 2] = np.inf
    assert np.isnan(model.predict(X, codes)).tolist() == [False, True, False, True, False]


def test_no_rows_give_no_predictions(model: MetaModel) -> None:
    assert model.predict(np.empty((0, 3), dtype=np.float32), np.empty(0, dtype=np.int32)).shape == (0,)


def test_the_wrong_number_of_features_is_named(model: MetaModel) -> None:
    with pytest.raises(ValueError, match="needs 3 columns"):
        model.predict(np.zeros((1, 4), dtype=np.float32), np.zeros(1, dtype=np.int32))


def test_a_prediction_does_not_depend_on_what_else_is_asked(model: MetaModel) -> None:
    """A backtest asks about the signals that it needs, in questions of any size, where a bot asks about each bar's."""
    features, codes = rows(200)
    together = model.predict(features, codes)
    alone = np.concatenate([model.predict(features[row : row + 1], codes[row : row + 1]) for row in range(200)])
    some = np.random.default_rng(1).permutation(200)[:77]
    assert alone.tobytes() == together.tobytes()
    assert model.predict(features[some], codes[some]).tobytes() == together[some].tobytes()


def test_an_unknown_encoding_is_named() -> None:
    with pytest.raises(ValueError, match="'hash'; choose one of index, one_hot"):
        encode_features(np.zeros((1, 1), np.float32), np.zeros(1, np.int32), encoding="hash", n_symbols=1)


# ------------------------------------------------------------------- tampering
@pytest.mark.parametrize("name", [MODEL_FILE, META_FILE])
@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "flipped", "garbage"])
def test_a_damaged_artifact_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    make_model().save(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        middle = content.index(b"0.") + 2  # a digit of a number: still a well-formed file
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "garbage": b"\xff\xfe\x00"}[damage])
    with pytest.raises(ModelError):
        MetaModel.load(tmp_path).probe()


def test_a_changed_tree_with_a_matching_checksum_is_caught_by_the_probe(tmp_path: Path) -> None:
    import hashlib

    make_model().save(tmp_path)
    lines = (tmp_path / MODEL_FILE).read_text().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if line.startswith("leaf_value="))
    values = lines[at].removeprefix("leaf_value=").split()
    # Same length, so that LightGBM's own table of tree sizes still fits.
    lines[at] = "leaf_value=" + " ".join(v.translate(str.maketrans("123456789", "912345678")) for v in values) + "\n"
    (tmp_path / MODEL_FILE).write_text("".join(lines))
    meta = json.loads((tmp_path / META_FILE).read_text())
    meta["model_sha256"] = hashlib.sha256((tmp_path / MODEL_FILE).read_bytes()).hexdigest()
    (tmp_path / META_FILE).write_text(json.dumps(meta))
    with pytest.raises(ModelError, match="probe prediction is off"):
        MetaModel.load(tmp_path).probe()


def test_files_of_two_models_do_not_mix(tmp_path: Path) -> None:
    for encoding in ("index", "one_hot"):
        (tmp_path / encoding).mkdir()
        make_model(encoding).save(tmp_path / encoding)
    meta = json.loads((tmp_path / "index" / META_FILE).read_text())
    meta["symbol_encoding"] = "one_hot"
    (tmp_path / "index" / META_FILE).write_text(json.dumps(meta))
    with pytest.raises(ModelError, match="do not belong together"):
        MetaModel.load(tmp_path / "index")


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    make_model().save(tmp_path)
    meta = json.loads((tmp_path / META_FILE).read_text())
    (tmp_path / META_FILE).write_text(json.dumps(meta | {"format_version": 99}))
    with pytest.raises(ModelError, match="format_version is 99"):
        MetaModel.load(tmp_path)


def test_a_model_without_probe_rows_cannot_be_verified(tmp_path: Path) -> None:
    model = make_model()
    model.probe_rows = None
    model.save(tmp_path)
    with pytest.raises(ModelError, match="no probe rows"):
        MetaModel.load(tmp_path).probe()


def test_loading_and_predicting_needs_neither_scikit_learn_nor_pandas(tmp_path: Path) -> None:
    make_model().save(tmp_path)
    program = (
        "import sys, pathlib; from quant.model import MetaModel; m = MetaModel.load(pathlib.Path(sys.argv[1])); "
        "m.probe(); print([n for n in ('sklearn', 'pandas', 'numba', 'pickle5') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=240, check=True
    )
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------- calibration
@given(st.floats(0.2, 3.0), st.floats(-1.0, 1.0), st.integers(0, 20))
def test_platt_scaling_finds_the_line_that_made_the_outcomes(slope: float, intercept: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=20_000)
    truth = PlattCalibration(slope=slope, intercept=intercept)
    y = (rng.uniform(size=20_000) < truth.apply(raw)).astype(np.int8)
    fitted = fit_platt(raw, y)
    assert fitted.slope == pytest.approx(slope, abs=0.15)
    assert fitted.intercept == pytest.approx(intercept, abs=0.1)


def test_scores_that_point_the_wrong_way_are_flattened_and_not_turned_round() -> None:
    raw = np.random.default_rng(0).normal(size=5_000)
    y = (raw < 0.3).astype(np.int8)
    fitted = fit_platt(raw, y)
    assert fitted.slope == 0.0
    assert fitted.apply(raw) == pytest.approx(np.full(5_000, y.mean()), abs=1e-3)


def test_separable_scores_do_not_give_infinite_slopes() -> None:
    raw = np.array([-3.0, -2.0, 2.0, 3.0])
    fitted = fit_platt(raw, np.array([0, 0, 1, 1], dtype=np.int8))
    assert 0 < fitted.slope < 100


@given(st.floats(0, 1e6), st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_calibrated_scores_are_probabilities_in_the_same_order(slope: float, intercept: float, raw: float) -> None:
    low, high = PlattCalibration(slope=slope, intercept=intercept).apply(np.array([raw, raw + 1.0]))
    assert 0.0 <= low <= high <= 1.0


@pytest.mark.parametrize("slope, intercept", [(math.nan, 0.0), (-1.0, 0.0), (1.0, math.inf)])
def test_a_calibration_that_makes_no_sense_is_refused(slope: float, intercept: float) -> None:
    with pytest.raises(ValueError, match="slope"):
        PlattCalibration(slope=slope, intercept=intercept)


def test_outcomes_of_one_class_cannot_calibrate() -> None:
    with pytest.raises(ValueError, match="samples of both"):
        fit_platt(np.array([0.1, 0.2]), np.array([1, 1], dtype=np.int8))
