from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.conf import settings
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured

from quant.schema import FeatureSchema
from quant.signals import SHIPPED, primary_side
from quant.training_spec import TrainingSpec
from tradingsite import signal_files

EXAMPLE = settings.BASE_DIR / "docs/examples/quiet_breakout.py"


def test_a_file_of_ones_own_is_a_signal_and_a_changed_file_is_another(tmp_path: Path) -> None:
    copy = tmp_path / "quiet_breakout.py"
    copy.write_bytes(EXAMPLE.read_bytes())
    name = signal_files.resolve("quiet_breakout.py", folder=tmp_path)
    assert signal_files.resolve(str(EXAMPLE), folder=tmp_path) == name  # the content is what counts
    assert TrainingSpec(signal=name).signal == name
    schema = FeatureSchema()
    row = np.full(len(schema), np.nan, dtype=np.float32)
    row[schema.index("donchian_position")], row[schema.index("volatility_ratio")] = 0.99, 0.5
    assert primary_side(name, row, schema) == 1
    copy.write_text(EXAMPLE.read_text().replace("0.9\n", "0.4\n"))
    changed = signal_files.resolve("quiet_breakout.py", folder=tmp_path)
    assert changed != name
    assert primary_side(changed, row, schema) == 0


def test_a_name_stays_a_name(tmp_path: Path) -> None:
    assert signal_files.resolve("trend", folder=tmp_path) == "trend"


@pytest.mark.parametrize(
    "name, content, named",
    [
        ("rule.py", None, "cannot be read"),
        ("rule.py", "import nothing_like_it", "nothing_like_it"),
        ("rule.py", "x = 1", "KeyError: 'SIGNAL'"),
        ("rule.py", "1 / 0", "ZeroDivisionError"),
        ("My Rule.py", "x = 1", "Rename it"),
    ],
)
def test_a_file_that_is_no_signal_is_refused_with_its_path_and_the_fix(
    tmp_path: Path, name: str, content: str | None, named: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ImproperlyConfigured, match=named) as refusal:
        signal_files.resolve(name, folder=tmp_path)
    assert name in str(refusal.value)


def test_a_signal_that_does_not_exist_stops_every_command(settings: Any) -> None:
    assert not run_checks(tags=["training"])
    settings.PRIMARY_SIGNAL = "trnd"
    (found,) = run_checks(tags=["training"])
    assert found.id == "training.E001"
    assert "trend" in (found.hint or "")


def test_the_documentation_names_every_signal() -> None:
    text = (settings.BASE_DIR / "docs/signals.md").read_text()
    assert [signal.name for signal in SHIPPED if f"`{signal.name}`" not in text] == []
