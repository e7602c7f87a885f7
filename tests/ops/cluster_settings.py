"""Settings of the clusters that the kill tests start: short time-outs, so that a test need not wait for them."""

from tradingsite.settings import *  # noqa: F403 - a settings module is its names
from tradingsite.settings import Q_CLUSTER as _Q_CLUSTER

Q_CLUSTER = {**_Q_CLUSTER, "timeout": 2, "retry": 60, "recycle": 2, "poll": 0.1}
