"""The simulated exchange: a stateless synthetic market by seed. Every price here is invented."""

from exchanges.simulated.market import SimulatedMarket

__all__ = ["SimulatedMarket"]
