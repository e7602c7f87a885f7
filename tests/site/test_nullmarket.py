"""A small dose of `manage.py nullmarket`: what it promises, and that it notices when the promise is broken."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np
import pytest
from django.core.management import CommandError, call_command

from quant.gates import GateBounds
from quant.samples import make_samples
from quant.training_spec import TrainingSpec
from tradingsite.nullmarket.judging import SeedResult, judge, run_seed
from tradingsite.nullmarket.worlds import World, simulated_panel, with_shuffled_labels

SMALL = TrainingSpec.small()
FAIR = SeedResult(
    seed=0, ic=0.001, ic_error=0.01, ic_t=0.1, blocks=36, skill_t=-1.0, samples=9_000, trees=5, flat=False, trades=0,
    net_return=None, net_return_of_all=-0.001, gates=(), promoted=False, seconds=1.0,
)  # fmt: skip


def nullmarket(*arguments: str) -> dict[str, Any]:
    out = StringIO()
    call_command("nullmarket", *arguments, "--json", stdout=out)
    told: dict[str, Any] = json.loads(out.getvalue())
    return told


@pytest.mark.parametrize("world, blend", [("", "logistic"), ("--shuffle", "none")])
def test_nothing_is_promoted_where_there_is_nothing_to_learn(world: str, blend: str, settings: Any) -> None:
    settings.TRAIN_TREES, settings.TRAIN_BLEND = 40, blend
    told = nullmarket("--seeds", "1", "--symbols", "8", "--days", "160", *([world] if world else []))
    (result,) = told["results"]
    assert told["verdict"]["kept"]
    assert not result["promoted"]
    assert any(not gate["passed"] for gate in result["gates"])
    assert result["samples"] > 1_000
    assert (told["spec"]["max_trees"], told["spec"]["blend"]) == (40, blend)


def test_the_same_market_with_its_labels_in_place_is_learned_from() -> None:
    bounds = GateBounds()
    (learned, shuffled) = (
        run_seed(world, 3, symbols=8, days=200, spec=SMALL, bounds=bounds)
        for world in (World.LEARNABLE, World.SHUFFLED)
    )
    assert learned.ic_t > 4
    assert shuffled.ic_t < 2
    assert not shuffled.promoted


def test_shuffling_moves_the_labels_of_a_symbol_within_their_window_and_nothing_else() -> None:
    panel = simulated_panel(symbols=5, days=120, seed=1, learnable=True)
    honest = make_samples(panel, SMALL, progress=lambda _done, _text: None)
    first, again, other = (
        with_shuffled_labels(seed)(panel, SMALL, progress=lambda _done, _text: None) for seed in (4, 4, 5)
    )
    for part in ("development", "test"):
        before, after = getattr(honest, part), getattr(first, part)
        assert np.array_equal(after.y, getattr(again, part).y)
        assert not np.array_equal(after.net_return, getattr(other, part).net_return)
        for column in ("X", "code", "weight", "t0", "t1", "allowed"):
            assert np.array_equal(getattr(before, column), getattr(after, column), equal_nan=True)
        moved = before.net_return != after.net_return
        assert np.mean(moved) > 0.8
        assert np.array_equal(after.y, after.net_return > 0)
        for code in np.unique(before.code):
            mine = before.code == code
            assert np.array_equal(np.sort(before.net_return[mine]), np.sort(after.net_return[mine]))
        # Pieces of two days: neighbours in time stay neighbours, so the noise is as dependent as it was.
        mine = np.flatnonzero(before.code == 0)
        repeats = [np.mean(each.y[mine][1:] == each.y[mine][:-1]) for each in (before, after)]
        assert repeats[1] == pytest.approx(repeats[0], abs=0.1)
        assert repeats[1] > 0.7


def test_a_promotion_with_nothing_to_learn_breaks_the_promise() -> None:
    kept = judge(World.NULL, [FAIR, replace(FAIR, seed=1, ic=-0.002, ic_t=-0.2)])
    assert kept.kept
    assert kept.pooled_ic == pytest.approx(-0.0005)
    assert kept.pooled_t == pytest.approx(-0.0005 / (0.01 / 2**0.5))
    verdict = judge(World.SHUFFLED, [FAIR, replace(FAIR, seed=8, promoted=True)])
    assert verdict.promoted == (8,)
    assert "seeds 8" in verdict.broken[0]


def test_scores_that_rank_what_comes_later_break_the_promise_together_or_in_too_many_seeds() -> None:
    leak = [replace(FAIR, seed=seed, ic=0.012, ic_t=1.2) for seed in range(10)]  # no seed says so by itself
    verdict = judge(World.NULL, leak)
    assert verdict.exceeding == ()
    assert "pooled" in verdict.broken[0]
    one = [FAIR] * 9 + [replace(FAIR, seed=9, ic=0.022, ic_t=2.2)]  # one in ten is chance
    assert judge(World.NULL, one).kept
    assert judge(World.NULL, one).chance == pytest.approx(1 - 0.947**10, abs=0.01)
    wild = [replace(FAIR, seed=seed, ic=sign * 0.03, ic_t=sign * 3.0) for seed, sign in enumerate([1, -1] * 5)]
    verdict = judge(World.NULL, wild)
    assert verdict.pooled_t == 0
    assert "10 of 10 seeds" in verdict.broken[0]


def test_a_control_that_is_mostly_refused_breaks_the_promise() -> None:
    good = replace(FAIR, ic=0.1, ic_t=10.0, promoted=True)
    assert judge(World.LEARNABLE, [good, good, FAIR]).kept
    assert not judge(World.LEARNABLE, [good, FAIR]).kept


def test_the_command_exits_with_1_when_the_promise_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tradingsite.nullmarket.judging.run_seed", lambda *_, **__: replace(FAIR, promoted=True))
    out = StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("nullmarket", "--seeds", "2", stdout=out)
    assert ended.value.code == 1
    assert "2 of 2 promoted" in out.getvalue()
    assert "BROKEN: promoted with nothing to learn" in out.getvalue()


def test_a_market_that_is_too_small_is_said_so() -> None:
    with pytest.raises(CommandError, match="TOO_FEW_SAMPLES"):
        nullmarket("--seeds", "1", "--symbols", "1", "--days", "30")
