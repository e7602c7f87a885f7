"""The live pipeline over markets of many seeds, and what was promised of them.

The promise of a market with nothing to learn: no model is promoted, and what the models rank is not ranked better or
worse than by chance: |t| of the pooled information coefficient is below 2. A seed by itself exceeds 2 by chance one
time in about twenty, so seeds that do are counted, and only more of them than chance explains breaks the promise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy import stats

from quant.gates import GateBounds, GateResult
from quant.pipeline import train
from quant.samples import make_samples
from quant.training_spec import TrainingSpec
from tradingsite.nullmarket.worlds import World, simulated_panel, with_shuffled_labels

LARGEST_T = 2.0
LEAST_CHANCE = 0.01
"""More seeds beyond LARGEST_T than happen by chance with this probability are not chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedResult:
    """What the pipeline made of one market. ``ic`` of the test window, its error and t over ``blocks`` of time.

    ``flat``: the calibration found no skill out of fold and made every probability the same; ``ic`` is that of the
    scores before it. ``net_return`` is what a trade at the threshold earned, None when none was taken.
    """

    seed: int
    ic: float
    ic_error: float
    ic_t: float
    blocks: int
    skill_t: float
    samples: int
    trees: int
    flat: bool
    trades: int
    net_return: float | None
    net_return_of_all: float
    gates: tuple[GateResult, ...]
    promoted: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"gates": [gate.to_dict() for gate in self.gates]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """All seeds of a world. ``pooled_t``: mean information coefficient / its error, the seeds being independent.

    ``chance`` is the probability that as many seeds as ``exceeding``, or more, are beyond LARGEST_T by chance alone.
    """

    world: World
    seeds: int
    promoted: tuple[int, ...]
    pooled_ic: float
    pooled_t: float
    exceeding: tuple[int, ...]
    chance: float
    broken: tuple[str, ...]

    @property
    def kept(self) -> bool:
        return not self.broken

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"kept": self.kept}


def run_seed(world: World, seed: int, *, symbols: int, days: int, spec: TrainingSpec, bounds: GateBounds) -> SeedResult:
    """Train on the market of ``seed`` and judge the model. Raises TrainingError when the market is too small."""
    began = time.process_time()
    panel = simulated_panel(
        symbols=symbols, days=days, seed=seed, learnable=world is not World.NULL, timeframe=spec.timeframe
    )
    result = train(
        panel,
        spec,
        progress=lambda _done, _text: None,
        gate_bounds=bounds,
        sample=with_shuffled_labels(seed) if world is World.SHUFFLED else make_samples,
    )
    test = result.metrics["test"]
    return SeedResult(
        seed=seed,
        ic=test["ic"],
        ic_error=test["ic_error"] or 0.0,
        ic_t=test["ic_t"],
        blocks=test["blocks"],
        skill_t=test["skill_t"],
        samples=test["samples"],
        trees=result.metrics["trees"],
        flat=result.model.calibration.slope == 0,
        trades=test["trades"],
        net_return=test["net_return"],
        net_return_of_all=test["net_return_of_all"],
        gates=result.gates,
        promoted=result.gates_passed,
        seconds=time.process_time() - began,
    )


def judge(world: World, results: Sequence[SeedResult]) -> Verdict:
    """Hold the results of a world's seeds, at least one, against what was promised."""
    n = len(results)
    error = math.sqrt(sum(result.ic_error**2 for result in results)) / n
    ic = sum(result.ic for result in results) / n
    pooled_t = ic / error if error > 0 else 0.0
    exceeding = tuple(result.seed for result in results if abs(result.ic_t) >= LARGEST_T)
    # Student's t with a degree of freedom less than blocks, as cluster-robust errors want it (Cameron and Miller 2015).
    beyond = sum(2 * float(stats.t.sf(LARGEST_T, max(1, result.blocks - 1))) for result in results) / n
    chance = float(stats.binom.sf(len(exceeding) - 1, n, beyond))
    promoted = tuple(result.seed for result in results if result.promoted)
    broken = []
    if world is World.LEARNABLE:
        if 2 * len(promoted) <= n:
            broken.append(f"{len(promoted)} of {n} models were promoted where there is something to learn")
        if pooled_t < LARGEST_T:
            broken.append(f"t of the pooled information coefficient is {pooled_t:.2f}; below {LARGEST_T:g}")
    else:
        if promoted:
            broken.append(f"promoted with nothing to learn: seeds {', '.join(map(str, promoted))}")
        if abs(pooled_t) >= LARGEST_T:
            broken.append(f"t of the pooled information coefficient is {pooled_t:.2f}; {LARGEST_T:g} or more")
        if chance < LEAST_CHANCE:
            broken.append(f"{len(exceeding)} of {n} seeds are beyond {LARGEST_T:g}: by chance with p = {chance:.4f}")
    return Verdict(
        world=world,
        seeds=n,
        promoted=promoted,
        pooled_ic=ic,
        pooled_t=pooled_t,
        exceeding=exceeding,
        chance=chance,
        broken=tuple(broken),
    )
