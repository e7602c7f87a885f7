"""A primary signal that always wants to trade: for the kill test, which needs orders and not profits."""

import numpy as np
from numpy.typing import NDArray

from quant.schema import FeatureSchema
from quant.signals import PrimarySignal, sides


def always(features: NDArray[np.float32], schema: FeatureSchema) -> NDArray[np.int8]:
    """Follow the last candle."""
    change = features[..., schema.index("return_1")]
    return sides(long=change > 0, short=change < 0)


SIGNAL = PrimarySignal(
    name="always", description="the direction of the last candle", requires=("return_1",), function=always
)
