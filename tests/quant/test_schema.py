from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from quant import kernel, market_kernel, schema
from quant.schema import FEATURES, FeatureSchema


def test_the_kernel_writes_each_feature_to_the_column_that_the_schema_names() -> None:
    names = [spec.name for spec in FEATURES]
    own = [getattr(kernel, name.upper()) for name in names[: kernel.N_OWN]]
    market = [kernel.N_OWN + getattr(market_kernel, name.upper()) for name in names[kernel.N_OWN : -kernel.N_RANKED]]
    ranks = [kernel.N_OWN + market_kernel.RANKS + rank for rank in range(market_kernel.N_RANKS)]
    assert own + market + ranks == list(range(len(names)))
    assert [f"{names[column]}_rank" for column in kernel.RANKED] == names[-kernel.N_RANKED :]


def test_both_kernels_lay_their_numbers_out_alike() -> None:
    assert market_kernel.LANES == kernel.LANES
    assert market_kernel.NOTES == (kernel.NUMBER, kernel.LINKED_RETURN, kernel.SIDE_OF_AVERAGE)
    assert market_kernel.N_RANKS == kernel.N_RANKED
    assert kernel.RANKED[market_kernel.RANKED_RETURN_24] == kernel.RETURN_24


def test_features_of_one_symbol_come_first_and_alone_when_asked() -> None:
    own, every = FeatureSchema(market_wide=False), FeatureSchema()
    assert every.names[: len(own)] == own.names
    assert not any(spec.market_wide for spec in own.specs)
    assert all(spec.market_wide for spec in every.specs[len(own) :])
    assert len(set(every.names)) == len(every) > len(own)


def test_every_feature_says_what_it_is() -> None:
    for spec in FEATURES:
        assert all((spec.formula, spec.source, spec.unit)), spec.name
        assert spec.warmup >= 1
    assert FeatureSchema().warmup == max(spec.warmup for spec in FEATURES)


def test_an_unknown_feature_is_named_with_the_choices() -> None:
    assert FeatureSchema().names[FeatureSchema().index("rsi_14")] == "rsi_14"
    with pytest.raises(ValueError, match=r"'rsi' is not in the schema; use one of: return_1"):
        FeatureSchema().index("rsi")
    with pytest.raises(ValueError, match="'beta_168' is not in the schema"):
        FeatureSchema(market_wide=False).index("beta_168")


def test_the_hash_follows_everything_that_changes_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    first = FeatureSchema().hash
    assert first == FeatureSchema().hash
    assert first != FeatureSchema(market_wide=False).hash
    monkeypatch.setattr(schema, "KERNEL_VERSION", schema.KERNEL_VERSION + 1)
    assert FeatureSchema().hash != first
    monkeypatch.undo()
    changed = (dataclasses.replace(FEATURES[0], formula="close"), *FEATURES[1:])
    monkeypatch.setattr(schema, "FEATURES", changed)
    assert FeatureSchema().hash != first


def test_names_signals_and_label_settings_do_not_load_a_compiler() -> None:
    code = "import sys, quant.schema, quant.labels, quant.signals, quant.panel; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
