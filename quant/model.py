"""The meta-model: trees, a logistic regression beside them if asked for, calibration, threshold; text, never a pickle.

An artifact is a directory with two files whose bytes depend only on the model: ``model.txt`` (LightGBM's own text)
and ``model.json`` (everything else, including the sha256 of ``model.txt`` and probe rows with their predictions).
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quant.calibration import PlattCalibration
from quant.logistic import LogisticBaseline

MODEL_FILE = "model.txt"
META_FILE = "model.json"
FORMAT_VERSION, BLENDED_VERSION = 1, 2
"""Of trees alone, and of trees with a logistic regression: a program that knows no blend must not serve without it."""
ENCODINGS = ("index", "one_hot")
PROBE_TOLERANCE = 1e-9
"""The text format keeps every bit of a tree; what differs between machines is the last bit of exp()."""


class ModelError(ValueError):
    """An artifact that cannot be used: missing, truncated, tampered with, or not of this format."""


FIXED_PARAMS = {
    "objective": "binary",
    "metric": "binary_logloss",
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}


@contextmanager
def _without(*modules: str) -> Iterator[None]:
    """Make the named modules unimportable, unless they are loaded already, while the body imports something else."""
    hidden = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None is Python's "cannot be imported"
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def import_lightgbm() -> Any:
    """Import LightGBM without the optional scikit-learn and pandas it drags in (130 MB and 1 s in the bot)."""
    if "lightgbm" in sys.modules:
        return sys.modules["lightgbm"]
    with _without("sklearn", "pandas"):
        import lightgbm
    return lightgbm


def encode_features(
    features: NDArray[np.float32], symbol_codes: NDArray[np.int32], *, encoding: str, n_symbols: int
) -> NDArray[np.float32]:
    """Append the symbol to the features: one ordinal column (``index``) or ``n_symbols`` columns (``one_hot``).

    Raises ValueError for a code outside 0..n_symbols-1: a model must not guess about a symbol it never saw.
    """
    check_codes(symbol_codes, n_rows=len(features), n_symbols=n_symbols)
    if encoding == "index":
        return np.column_stack([features, symbol_codes.astype(np.float32)])
    if encoding == "one_hot":
        hot = np.zeros((len(features), n_symbols), dtype=np.float32)
        hot[np.arange(len(features)), symbol_codes] = 1.0
        return np.hstack([features, hot])
    raise ValueError(f"symbol_encoding is {encoding!r}; choose one of {', '.join(ENCODINGS)}")


def usable_rows(features: NDArray[np.float32], required: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return for each row of float32[n, F] whether its required columns (bool[F]) are finite and none is infinite."""
    unusable = np.isinf(features) | (np.isnan(features) & required)
    return np.asarray(~unusable.any(axis=1))


def check_codes(symbol_codes: NDArray[np.int32], *, n_rows: int, n_symbols: int) -> None:
    if symbol_codes.shape != (n_rows,):
        raise ValueError(f"symbol_codes has shape {symbol_codes.shape}; it needs one code for each of {n_rows} rows")
    unknown = (symbol_codes < 0) | (symbol_codes >= n_symbols)
    if unknown.any():
        row = int(np.flatnonzero(unknown)[0])
        raise ValueError(
            f"symbol code {int(symbol_codes[row])} in row {row} is unknown: the model covers {n_symbols} symbols, "
            f"codes 0 to {n_symbols - 1}; ask only about symbols that the model covers"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Rows with the predictions that the model gave when it was made; they must come out again after a load."""

    features: NDArray[np.float32]
    symbol_codes: NDArray[np.int32]
    predictions: NDArray[np.float64]


@dataclass(slots=True, kw_only=True)
class MetaModel:
    """A trained model. ``symbols`` in the order of their codes; ``feature_names`` in the order of the columns.

    ``panel_symbols`` is the panel that the market-wide features were computed over: live features equal those of
    training only over the same panel (I13). A row without one of the ``required_features`` is not predicted.
    ``fit_end_ms`` is the end of the newest label that trees, calibration or threshold have seen: everything later is
    unseen. ``facts`` holds what identifies the training (spec, schema hash, label hash). With ``logistic`` its log odds
    are blended with those of the trees before the calibration.
    """

    booster_text: str
    calibration: PlattCalibration
    threshold: float
    symbol_encoding: str
    symbols: tuple[str, ...]
    panel_symbols: tuple[str, ...]
    feature_names: tuple[str, ...]
    required_features: tuple[str, ...]
    fit_end_ms: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    probe_rows: Probe | None = None
    logistic: LogisticBaseline | None = None
    _booster: Any = field(default=None, init=False, repr=False, compare=False)
    _required: NDArray[np.bool_] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def blend(self) -> str:
        """What is blended with the trees, one of `quant.logistic.BLENDS`."""
        return "none" if self.logistic is None else "logistic"

    def code_of(self, symbol: str) -> int:
        """Return the symbol's code, or -1 when the model does not cover it."""
        return self.symbols.index(symbol) if symbol in self.symbols else -1

    def codes_for(self, symbols: tuple[str, ...]) -> NDArray[np.int32]:
        """Return the code of each symbol, int32[n]; -1 where the model does not cover it."""
        codes = {symbol: code for code, symbol in enumerate(self.symbols)}
        return np.array([codes.get(symbol, -1) for symbol in symbols], dtype=np.int32)

    def predict(
        self, features: NDArray[np.float32], symbol_codes: NDArray[np.int32], *, num_threads: int = 1
    ) -> NDArray[np.float64]:
        """Return the probability that each signal pays, float64[n], for features float32[n, F] and codes int32[n].

        A row with an infinite feature, or without one that every symbol had in training, gets NaN: fail closed.
        Raises ValueError for a wrong number of columns or a code that the model does not know.
        """
        probability = self.calibration.apply(self.score(features, symbol_codes, num_threads=num_threads))
        if self._required is None:
            self._required = np.isin(self.feature_names, self.required_features)
        probability[~usable_rows(features, self._required)] = np.nan
        return probability

    def score(
        self, features: NDArray[np.float32], symbol_codes: NDArray[np.int32], *, num_threads: int = 1
    ) -> NDArray[np.float64]:
        """Return the log odds before calibration, float64[n], of any row; arguments and errors as `predict`."""
        if features.ndim != 2 or features.shape[1] != len(self.feature_names):
            raise ValueError(
                f"features has shape {features.shape}; the model needs {len(self.feature_names)} columns: "
                "compute them with the schema that the model was trained with"
            )
        if len(features) == 0:
            check_codes(symbol_codes, n_rows=0, n_symbols=len(self.symbols))
            return np.empty(0)
        X = encode_features(features, symbol_codes, encoding=self.symbol_encoding, n_symbols=len(self.symbols))
        raw = self._load_booster().predict(X, raw_score=True, num_threads=num_threads)
        raw = np.asarray(raw, dtype=np.float64)
        return raw if self.logistic is None else self.logistic.blend(raw, features)

    def probe(self) -> None:
        """Predict the stored probe rows. Raises ModelError unless the stored predictions come out."""
        if self.probe_rows is None:
            raise ModelError("the artifact holds no probe rows, so it cannot be verified; train it again")
        got = self.predict(self.probe_rows.features, self.probe_rows.symbol_codes)
        worst = float(np.max(np.abs(got - self.probe_rows.predictions), initial=0.0))
        if not worst <= PROBE_TOLERANCE:
            raise ModelError(
                f"a probe prediction is off by {worst:.3g} (allowed {PROBE_TOLERANCE:g}): the artifact was changed "
                "or this LightGBM predicts differently; keep the last good model and train again"
            )

    def save(self, directory: Path) -> None:
        """Write ``model.txt`` and ``model.json`` into an existing directory; equal models give equal bytes.

        Not atomic: the registry writes into a directory of its own and makes it visible by a rename.
        """
        model_bytes = self.booster_text.encode()
        meta = {
            "format_version": FORMAT_VERSION if self.logistic is None else BLENDED_VERSION,
            "model_sha256": hashlib.sha256(model_bytes).hexdigest(),
            "calibration": self.calibration.to_dict(),
            "threshold": self.threshold,
            "symbol_encoding": self.symbol_encoding,
            "symbols": list(self.symbols),
            "panel_symbols": list(self.panel_symbols),
            "feature_names": list(self.feature_names),
            "required_features": list(self.required_features),
            "fit_end_ms": self.fit_end_ms,
            "facts": dict(self.facts),
            "probe": None if self.probe_rows is None else _probe_to_json(self.probe_rows),
        }
        if self.logistic is not None:
            meta["logistic"] = self.logistic.to_dict()
        text = json.dumps(meta, sort_keys=True, indent=1, allow_nan=False) + "\n"
        (directory / MODEL_FILE).write_bytes(model_bytes)
        (directory / META_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> MetaModel:
        """Read an artifact and parse its trees. Raises ModelError naming the file and what is wrong with it."""
        model_path, meta_path = directory / MODEL_FILE, directory / META_FILE
        try:
            meta = json.loads(meta_path.read_text(encoding="utf-8"))
            model_bytes = model_path.read_bytes()
        except (OSError, ValueError) as error:
            raise ModelError(f"{directory}: the artifact cannot be read: {error}") from error
        version = meta.get("format_version") if isinstance(meta, dict) else type(meta).__name__
        if version not in (FORMAT_VERSION, BLENDED_VERSION):
            raise ModelError(
                f"{meta_path}: format_version is {version!r}; this program reads {FORMAT_VERSION} and {BLENDED_VERSION}"
            )
        digest = hashlib.sha256(model_bytes).hexdigest()
        if digest != meta.get("model_sha256"):
            raise ModelError(
                f"{model_path}: sha256 is {digest[:12]}…, model.json says {str(meta.get('model_sha256'))[:12]}…: "
                "the file was changed or cut off; restore it or train again"
            )
        try:
            model = cls(
                booster_text=model_bytes.decode(),
                calibration=PlattCalibration(**meta["calibration"]),
                threshold=float(meta["threshold"]),
                symbol_encoding=meta["symbol_encoding"],
                symbols=tuple(meta["symbols"]),
                panel_symbols=tuple(meta["panel_symbols"]),
                feature_names=tuple(meta["feature_names"]),
                required_features=tuple(meta["required_features"]),
                fit_end_ms=int(meta["fit_end_ms"]),
                facts=meta["facts"],
                probe_rows=None if meta["probe"] is None else _probe_from_json(meta["probe"]),
                logistic=LogisticBaseline.from_dict(meta["logistic"]) if version == BLENDED_VERSION else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{meta_path}: {type(error).__name__}: {error}; restore it or train again") from error
        booster = model._load_booster()
        expected = len(model.feature_names) + (1 if model.symbol_encoding == "index" else len(model.symbols))
        if booster.num_feature() != expected:
            raise ModelError(
                f"{model_path}: the trees use {booster.num_feature()} columns, model.json describes {expected}; "
                "the two files do not belong together"
            )
        if model.logistic is not None and len(model.logistic.coefficients) != len(model.feature_names):
            raise ModelError(
                f"{meta_path}: the logistic regression has {len(model.logistic.coefficients)} coefficients for "
                f"{len(model.feature_names)} features; restore it or train again"
            )
        return model

    def _load_booster(self) -> Any:
        if self._booster is None:
            lightgbm = import_lightgbm()
            try:
                self._booster = lightgbm.Booster(model_str=self.booster_text)
            except lightgbm.basic.LightGBMError as error:
                raise ModelError(
                    f"LightGBM cannot read the trees: {error}; restore the artifact or train again"
                ) from error
        return self._booster


StopOn = tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int8], NDArray[np.float64]]
"""(features, codes, y, weight) of the rows that decide when to stop growing trees."""


class FitBooster(Protocol):
    """Grows the trees: `fit_booster` in this process, or another engine that a caller of `quant.pipeline` passes."""

    def __call__(
        self,
        *,
        features: NDArray[np.float32],
        symbol_codes: NDArray[np.int32],
        y: NDArray[np.int8],
        weight: NDArray[np.float64],
        encoding: str,
        n_symbols: int,
        feature_names: tuple[str, ...],
        params: Mapping[str, Any],
        n_trees: int,
        stop_on: StopOn | None = None,
        stop_rounds: int = 0,
        on_tree: Callable[[int], None] | None = None,
    ) -> Any: ...


def fit_booster(
    *,
    features: NDArray[np.float32],
    symbol_codes: NDArray[np.int32],
    y: NDArray[np.int8],
    weight: NDArray[np.float64],
    encoding: str,
    n_symbols: int,
    feature_names: tuple[str, ...],
    params: Mapping[str, Any],
    n_trees: int,
    stop_on: StopOn | None = None,
    stop_rounds: int = 0,
    on_tree: Callable[[int], None] | None = None,
) -> Any:
    """Grow at most ``n_trees`` trees; with ``stop_on`` (features, codes, y, weight) stop after ``stop_rounds`` trees
    without gain there. Deterministic for given data, params and number of threads. Returns a LightGBM Booster.
    """
    lightgbm = import_lightgbm()
    dataset_params = {"verbose": -1, "max_bin": params.get("max_bin", 255), "num_threads": params["num_threads"]}
    train = lightgbm.Dataset(
        training_matrix(features, symbol_codes, encoding=encoding, n_symbols=n_symbols),
        label=y,
        weight=weight,
        feature_name=column_names(feature_names, encoding=encoding, n_symbols=n_symbols),
        params=dataset_params,
        free_raw_data=True,
    )
    callbacks: list[Any] = []
    valid: list[Any] = []
    if stop_on is not None:
        X, stop_codes, stop_y, stop_weight = stop_on
        valid.append(
            train.create_valid(
                training_matrix(X, stop_codes, encoding=encoding, n_symbols=n_symbols),
                label=stop_y,
                weight=stop_weight,
            )
        )
        callbacks.append(lightgbm.early_stopping(stop_rounds, verbose=False))
    if on_tree is not None:
        callbacks.append(lambda env: on_tree(env.iteration + 1))
    return lightgbm.train(
        {**params, **FIXED_PARAMS},
        train,
        num_boost_round=n_trees,
        valid_sets=valid,
        callbacks=callbacks,
    )


def column_names(feature_names: tuple[str, ...], *, encoding: str, n_symbols: int) -> list[str]:
    """Return the names of the columns of `training_matrix`, in their order."""
    codes = ["symbol"] if encoding == "index" else [f"symbol_{code}" for code in range(n_symbols)]
    return [*feature_names, *codes]


def training_matrix(
    features: NDArray[np.float32], symbol_codes: NDArray[np.int32], *, encoding: str, n_symbols: int
) -> Any:
    """As `encode_features`, but one-hot columns are sparse: 500 dense ones would need 2 kB a row."""
    if encoding != "one_hot":
        return encode_features(features, symbol_codes, encoding=encoding, n_symbols=n_symbols)
    check_codes(symbol_codes, n_rows=len(features), n_symbols=n_symbols)
    from scipy import sparse

    n, width = features.shape
    columns = np.empty((n, width + 1), dtype=np.int32)
    columns[:, :width] = np.arange(width, dtype=np.int32)
    columns[:, width] = width + symbol_codes
    values = np.column_stack([features, np.ones(n, dtype=np.float32)])
    starts = np.arange(0, n * (width + 1) + 1, width + 1, dtype=np.int64)
    return sparse.csr_matrix((values.ravel(), columns.ravel(), starts), shape=(n, width + n_symbols))


def _probe_to_json(probe: Probe) -> dict[str, Any]:
    return {
        # A feature may be missing (funding of a spot market, say), and JSON knows no NaN: null, which NumPy reads
        # as NaN.
        "features": [[None if np.isnan(value) else float(value) for value in row] for row in probe.features],
        "symbol_codes": [int(code) for code in probe.symbol_codes],
        "predictions": [float(value) for value in probe.predictions],
    }


def _probe_from_json(data: Mapping[str, Any]) -> Probe:
    return Probe(
        features=np.array(data["features"], dtype=np.float32).reshape(len(data["symbol_codes"]), -1),
        symbol_codes=np.array(data["symbol_codes"], dtype=np.int32),
        predictions=np.array(data["predictions"], dtype=np.float64),
    )
