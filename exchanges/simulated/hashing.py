"""Random numbers without a generator: every value is a pure function of (key, index).

So any window of the simulated market can be computed at any time, in any order, by any process, with the same result to
the bit. The mixer is the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators",
OOPSLA 2014), vectorised over numpy arrays; unsigned overflow is its arithmetic.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S32, _S11 = (np.uint64(n) for n in (30, 27, 31, 32, 11))
_LOW_32 = np.uint64(0xFFFFFFFF)

Keys = NDArray[np.uint64]
Floats = NDArray[np.float64]


def stream_key(seed: int, *names: object) -> int:
    """Key of an independent stream, from a seed and any names. Stable across versions and machines."""
    text = "\x1f".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def hash64(key: Keys, index: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64 random bits for each (key, index); the arguments broadcast."""
    x = index.astype(np.uint64) * _GOLDEN + key
    x ^= x >> _S30
    x *= _MIX_1
    x ^= x >> _S27
    x *= _MIX_2
    x ^= x >> _S31
    return x


def uniform(key: Keys, index: NDArray[np.int64]) -> Floats:
    """Uniform in [0, 1), 53 bits."""
    return (hash64(key, index) >> _S11).astype(np.float64) * 2.0**-53


def uniform_pair(key: Keys, index: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Two independent uniforms in (0, 1), 32 bits each, for the price of one hash."""
    bits = hash64(key, index)
    high, low = (bits >> _S32).astype(np.float64), (bits & _LOW_32).astype(np.float64)
    return (high + 0.5) * 2.0**-32, (low + 0.5) * 2.0**-32


def normal(key: Keys, index: NDArray[np.int64]) -> Floats:
    """Standard normal (Box-Muller; one of its two values)."""
    u, v = uniform_pair(key, index)
    return np.sqrt(-2.0 * np.log(u)) * np.cos(2.0 * np.pi * v)


def normal_row(key: Keys, first: NDArray[np.int64], count: int) -> Floats:
    """Standard normals of shape [..., count] (count even) for the pair indices first, first + 1, ...

    Uses both values of each Box-Muller pair: half the hashes and logarithms of `normal`.
    """
    u, v = uniform_pair(key[..., None], first[..., None] + np.arange(count // 2))
    radius = np.sqrt(-2.0 * np.log(u))
    angle = 2.0 * np.pi * v
    out = np.empty((*u.shape[:-1], count))
    np.multiply(radius, np.cos(angle), out=out[..., 0::2])
    np.multiply(radius, np.sin(angle), out=out[..., 1::2])
    return out


def smooth_normal(key: Keys, position: NDArray[np.int64], scale: int) -> Floats:
    """Standard normal noise that changes slowly: autocorrelation vanishes after `scale` positions.

    Knots every `scale` positions, blended by cos/sin, so that the variance is exactly 1 everywhere (a linear blend
    would halve it between knots). `key` is [S, 1], `position` an ascending range [T]; returns [S, T].
    """
    knot = position // scale
    angle = (0.5 * np.pi / scale) * (position - knot * scale)
    first = int(knot[0])
    knots = normal(key, np.arange(first, int(knot[-1]) + 2, dtype=np.int64))
    here = knot - first
    return np.cos(angle) * knots[:, here] + np.sin(angle) * knots[:, here + 1]
