"""A primary signal of one's own: a close at the edge of its channel after a quiet time."""

from quant.signals import PrimarySignal, sides


def quiet_breakout(features, schema):
    position = features[..., schema.index("donchian_position")]
    quiet = features[..., schema.index("volatility_ratio")] < 0.9
    return sides(long=quiet & (position > 0.95), short=quiet & (position < 0.05))


SIGNAL = PrimarySignal(
    name="quiet_breakout",
    description="close at the edge of the 24-candle channel while volatility is below its long-run level",
    requires=("donchian_position", "volatility_ratio"),
    function=quiet_breakout,
)
