"""Bounds of what a model's trades did, against what it promised."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.promises import LiveRecord, live_calibration, wilson_interval


@given(st.integers(0, 500), st.integers(0, 500))
def test_the_interval_holds_the_share_and_stays_within_0_and_1(wins: int, losses: int) -> None:
    low, high = wilson_interval(wins, wins + losses)
    assert 0 <= low <= high <= 1
    if wins + losses:
        assert low <= wins / (wins + losses) <= high
        mirrored = wilson_interval(losses, wins + losses)
        assert [1 - mirrored[1], 1 - mirrored[0]] == pytest.approx([low, high])


def test_the_interval_is_the_published_one_and_narrows_with_trades() -> None:
    assert list(wilson_interval(8, 10)) == pytest.approx([0.4902, 0.9433], abs=1e-4)
    widths = [high - low for low, high in (wilson_interval(n // 2, n) for n in (10, 100, 1000))]
    assert widths == sorted(widths, reverse=True)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="wins is 3 and trades 2"):
        wilson_interval(3, 2)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    wins = np.random.default_rng(1).binomial(60, 0.55, size=4000)
    covered = [low <= 0.55 <= high for low, high in (wilson_interval(int(n), 60) for n in wins)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def record(probabilities: list[float], wins: int) -> LiveRecord:
    n = len(probabilities)
    return LiveRecord(n, wins, 0.6, n, wins, sum(probabilities), sum(p * (1 - p) for p in probabilities))


def test_calibration_is_judged_by_the_deviation_that_its_probabilities_imply() -> None:
    kept = live_calibration(record([0.6] * 100, 55))
    assert kept is not None
    assert [kept.promised, kept.paid] == pytest.approx([0.6, 0.55])
    assert kept.kept
    assert kept.bound == pytest.approx(1.96 * math.sqrt(0.24 / 100), rel=1e-3)
    broken = live_calibration(record([0.6] * 100, 45))
    assert broken is not None
    assert not broken.kept
    assert live_calibration(LiveRecord(trades=3, wins=1)) is None
