"""What can go wrong in training, by name."""

from __future__ import annotations


class TrainingAppError(Exception):
    """Base of the errors of this app; the text is for a person."""


class RunRefused(TrainingAppError):  # noqa: N818 - it names what happened, like LeaseLost
    """A run cannot be requested or cancelled; the text says why and what to do."""


class RunLost(TrainingAppError):  # noqa: N818 - it names what happened, like LeaseLost
    """The lease of a run went to somebody else or ended: stop, nothing that you write is accepted (T4)."""


class ArtifactError(TrainingAppError):
    """The files of an artifact are missing, cut off, changed, or predict something else than when they were written."""


class ArtifactUnreachable(TrainingAppError):  # noqa: N818 - it names what happened, like LeaseLost
    """The storage of artifacts does not answer, or a read failed: nothing is known, and it is tried again."""


class ActivationRefused(TrainingAppError):  # noqa: N818 - it names what happened, like LeaseLost
    """A model cannot be made active; the text says why and what to do."""
