"""What goes wrong on purpose: messages, trainings and workers. Listings and delistings are the simulated market's own.

Every draw comes from one seeded generator, so the same seed gives the same accidents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from quant.pipeline import TrainingResult


class Accident(StrEnum):
    """What may happen to a training that a worker was asked for."""

    NONE = "none"
    FAILS = "training_fails"
    REJECTED = "model_rejected"
    DIES = "worker_dies"
    HANGS = "training_hangs"


class PlannedFailureError(RuntimeError):
    """The error of a training that fails on purpose."""


Trainer = Callable[..., "TrainingResult"]


@dataclass(slots=True)
class Chaos:
    """Draws accidents; `counts` says how many of each there were. Without `enabled` nothing ever happens."""

    seed: int
    enabled: bool
    counts: Counter[str] = field(default_factory=Counter)
    _generator: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng([self.seed, 77])

    def training(self) -> Accident:
        """Draw what happens to the next training: about half of them go well."""
        if not self.enabled:
            return Accident.NONE
        accident = Accident(self._generator.choice([each.value for each in Accident], p=[0.5, 0.15, 0.15, 0.1, 0.1]))
        if accident is not Accident.NONE:
            self.counts[accident.value] += 1
        return accident

    def hang_minutes(self) -> int:
        """Draw how long a training hangs before it is dead."""
        return int(self._generator.integers(5, 180))

    def deliveries(self) -> int:
        """Draw how often a message is delivered: the queue may lose or double any of them (T9)."""
        if not self.enabled:
            return 1
        times = int(self._generator.choice([0, 1, 2], p=[0.03, 0.94, 0.03]))
        if times != 1:
            self.counts["message_lost" if times == 0 else "message_doubled"] += 1
        return times

    def pass_is_lost(self) -> bool:
        """Draw whether all workers are down for a while: the bot goes on."""
        return self.enabled and bool(self._generator.random() < 0.002)

    def outage_minutes(self) -> int:
        self.counts["worker_outage"] += 1
        return int(self._generator.integers(3, 60))


def failing_trainer(*_args: Any, **_kwargs: Any) -> TrainingResult:
    """Fail in the middle of a training."""
    raise PlannedFailureError("this training fails on purpose")


def rejecting_trainer(*args: Any, **kwargs: Any) -> TrainingResult:
    """Train for real, and hold the result against bounds that no model reaches."""
    from quant.pipeline import train

    kwargs["gate_bounds"] = replace(kwargs["gate_bounds"], min_t_stat=1e6)
    return train(*args, **kwargs)


def trainer_of(accident: Accident) -> Trainer | None:
    """Return the trainer that plays `accident`; None: the real one."""
    return {Accident.FAILS: failing_trainer, Accident.REJECTED: rejecting_trainer}.get(accident)
