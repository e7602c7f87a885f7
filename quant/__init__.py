"""The pure domain: features, signals, labels, validation, models, policy and the trading engine.

No Django, no I/O, no clock: time is passed in as integer milliseconds since 1970 (UTC), and a candle is named by its
open time. Nothing here imports pandas or numba when this package itself is imported.
"""
