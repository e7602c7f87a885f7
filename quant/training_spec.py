"""Everything that decides a training besides the data. Web code may import this module: no numba, no LightGBM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from quant import signals
from quant.label_spec import LabelSpec
from quant.logistic import BLENDS
from quant.model import ENCODINGS
from quant.regime import RegimeSpec
from quant.schema import FeatureSchema
from quant.timeframes import timeframe_ms

TRAINING_MODES = ("multi_symbol", "single_symbol")
_COUNTS = (
    "num_threads",
    "n_splits",
    "max_trees",
    "stop_rounds",
    "min_leaf_samples",
    "min_samples",
    "min_symbol_samples",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """Everything that decides a training besides the data; equal specs and data give equal bytes.

    ``embargo_bars`` is added to the purge; ``test_fraction`` and ``stop_fraction`` are shares of the time that the
    samples span. ``min_samples`` counts in the development part; a symbol with fewer than ``min_symbol_samples``
    there is left out.
    """

    training_mode: str = "multi_symbol"
    symbol_encoding: str = "index"
    timeframe: str = "1h"
    signal: str = "trend"
    label: LabelSpec = field(default_factory=LabelSpec)
    regime: RegimeSpec = field(default_factory=RegimeSpec)
    blend: str = "none"
    seed: int = 7
    num_threads: int = 1
    n_splits: int = 3
    embargo_bars: int = 24
    test_fraction: float = 0.2
    stop_fraction: float = 0.15
    learning_rate: float = 0.1
    num_leaves: int = 15
    min_leaf_samples: int = 200
    max_trees: int = 150
    stop_rounds: int = 15
    max_bin: int = 63
    feature_fraction: float = 0.6
    lambda_l2: float = 10.0
    min_samples: int = 500
    min_symbol_samples: int = 50

    def __post_init__(self) -> None:
        for name, choices in (
            ("training_mode", TRAINING_MODES),
            ("symbol_encoding", ENCODINGS),
            ("signal", signals.names()),
            ("blend", BLENDS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        timeframe_ms(self.timeframe)
        for name in ("test_fraction", "stop_fraction"):
            if not 0 < getattr(self, name) <= 0.5:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and at most 0.5")
        if not 0 < self.feature_fraction <= 1 or not self.lambda_l2 >= 0:
            raise ValueError(
                f"feature_fraction is {self.feature_fraction} and lambda_l2 {self.lambda_l2}; they must be above 0 "
                "and at most 1, and >= 0"
            )
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.embargo_bars < 0 or self.num_leaves < 2 or not self.learning_rate > 0 or self.max_bin < 2:
            raise ValueError(
                f"embargo_bars is {self.embargo_bars}, num_leaves {self.num_leaves}, learning_rate "
                f"{self.learning_rate}, max_bin {self.max_bin}; they must be >= 0, >= 2, > 0 and >= 2"
            )

    @classmethod
    def small(cls, **changes: Any) -> TrainingSpec:
        """Settings for little data (about 10 symbols x 120 days of 1h) in about a second: soak and tests."""
        defaults: dict[str, Any] = {
            "n_splits": 2,
            "num_leaves": 7,
            "min_leaf_samples": 100,
            "max_trees": 60,
            "stop_rounds": 10,
            "max_bin": 31,
            "test_fraction": 0.3,
            "min_samples": 300,
            "min_symbol_samples": 20,
        }
        return cls(**(defaults | changes))

    @property
    def schema(self) -> FeatureSchema:
        return FeatureSchema(market_wide=self.training_mode == "multi_symbol")

    def lightgbm_params(self) -> dict[str, Any]:
        """What LightGBM is told; the number of trees is not part of it."""
        return {
            "learning_rate": self.learning_rate,
            "num_leaves": self.num_leaves,
            "min_data_in_leaf": self.min_leaf_samples,
            "max_bin": self.max_bin,
            "feature_fraction": self.feature_fraction,
            "bagging_fraction": 0.7,
            "bagging_freq": 1,
            "lambda_l2": self.lambda_l2,
            "num_threads": self.num_threads,
            "seed": self.seed,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` takes back; stored with the run and the artifact."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainingSpec:
        """Raises ValueError for a key that is no setting."""
        unknown = set(data) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"unknown training settings: {', '.join(sorted(unknown))}")
        values = dict(data)
        if "label" in values:
            values["label"] = LabelSpec.from_dict(values["label"])
        if "regime" in values:
            values["regime"] = RegimeSpec(**values["regime"])
        return cls(**values)
