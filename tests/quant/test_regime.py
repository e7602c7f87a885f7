from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.reasons import code_of
from quant.regime import RegimeSpec, regime_allows, regime_reason, regime_values
from quant.schema import FeatureSchema

SCHEMA = FeatureSchema()
SPEC = RegimeSpec()


def row(ratio: float, adx: float) -> np.ndarray:
    features = np.zeros(len(SCHEMA), dtype=np.float32)
    features[SCHEMA.index("volatility_ratio")] = ratio
    features[SCHEMA.index("adx_14")] = adx
    return features


@pytest.mark.parametrize(
    "ratio, adx, named",
    [
        (1.0, 25.0, None),
        (5.0, 25.0, "volatility_ratio=5"),
        (0.1, 25.0, "volatility_ratio=0.1"),
        (1.0, 5.0, "adx=5"),
        (np.nan, 25.0, "volatility_ratio=nan"),
        (1.0, np.nan, "adx=nan"),
    ],
)
def test_a_regime_outside_the_bounds_is_refused_with_its_value(ratio: float, adx: float, named: str | None) -> None:
    text = regime_reason(*regime_values(np.stack([row(ratio, adx)]), SCHEMA)[0], spec=SPEC)
    assert (text is None) == (named is None)
    if text is not None:
        assert code_of(text) == "REGIME"
        assert named in text


values = st.floats(0, 100, width=32) | st.just(float("nan"))


@given(st.lists(st.tuples(values, values), min_size=1, max_size=20))
def test_many_rows_are_filtered_in_training_as_one_row_is_in_trading(pairs: list[tuple[float, float]]) -> None:
    features = np.stack([row(ratio, adx) for ratio, adx in pairs])
    allowed = regime_allows(features=features, schema=SCHEMA, spec=SPEC)
    one_by_one = [regime_reason(*each, spec=SPEC) is None for each in regime_values(features, SCHEMA)]
    assert allowed.tolist() == one_by_one


@pytest.mark.parametrize("bound", [0.1, 0.3, 0.7, 3.3])
def test_a_value_beside_a_bound_that_float32_cannot_hold_is_judged_alike(bound: float) -> None:
    ratios, adxs = (
        [np.nextafter(near, np.float32(0)), near, np.nextafter(near, np.float32(99))]
        for near in (np.float32(bound), np.float32(25.0 + bound))
    )
    features = np.stack([row(ratio, adx) for ratio, adx in zip(ratios, adxs, strict=True)])
    for spec in (
        RegimeSpec(min_volatility_ratio=0.0, max_volatility_ratio=bound),
        RegimeSpec(min_volatility_ratio=bound, max_volatility_ratio=9.0),
        RegimeSpec(min_volatility_ratio=0.0, max_volatility_ratio=9.0, min_adx=25.0 + bound),
    ):
        allowed = regime_allows(features=features, schema=SCHEMA, spec=spec)
        assert allowed.tolist() == [regime_reason(*each, spec=spec) is None for each in regime_values(features, SCHEMA)]
        assert 0 < allowed.sum() < 3


@pytest.mark.parametrize(
    "changes", [{"min_volatility_ratio": 5.0}, {"min_adx": 100.0}, {"min_adx": -1.0}, {"min_volatility_ratio": -1.0}]
)
def test_a_wrong_regime_setting_is_named(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        RegimeSpec(**changes)
