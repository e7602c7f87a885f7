"""Errors of coverage. Each message names the value, the rule and the fix."""


class CoverageError(Exception):
    """Something that a person asked for, or a setting says, cannot be done."""


class UniverseError(CoverageError):
    """The settings of the universe and what the exchange lists do not fit together."""
