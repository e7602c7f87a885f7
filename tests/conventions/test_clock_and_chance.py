"""Time and chance come in from outside: else a simulated month, a replay and a test would not be what they say."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator

import pytest

from tests.conventions import walker

CLOCK_MODULE = "ops_app/clock.py"

WALL_CLOCKS = {
    "time.time",
    "time.time_ns",
    "time.localtime",
    "time.gmtime",
    "time.ctime",
    "time.asctime",
    "time.strftime",
    "datetime.datetime.now",
    "datetime.datetime.utcnow",
    "datetime.datetime.today",
    "datetime.date.today",
    "django.utils.timezone.now",
    "django.utils.timezone.localtime",
    "django.utils.timezone.localdate",
}
#: Clocks that only measure how long something took, and sleeping: they decide nothing about the market, but a pure
#: function has no use for them.
STOPWATCHES = {"time.monotonic", "time.monotonic_ns", "time.perf_counter", "time.perf_counter_ns", "time.sleep"}
PACKAGES_WITHOUT_STOPWATCH = ("quant", "marketdata")

#: Generators that are seeded by whoever makes them: fine with a seed, forbidden without one.
SEEDED = {
    "random.Random",
    "numpy.random.default_rng",
    "numpy.random.SeedSequence",
    "numpy.random.PCG64",
    "numpy.random.Philox",
}
#: Names below random and numpy.random that draw nothing: types for annotations, and what a seeded generator is made of.
HARMLESS = {"numpy.random.Generator", "numpy.random.BitGenerator"}
ALWAYS_RANDOM = {"uuid.uuid1", "uuid.uuid4", "os.urandom", "random.SystemRandom"}

#: (file, name) -> why it may be used there.
EXEMPT: dict[tuple[str, str], str] = {
    ("ops_app/cluster.py", "uuid.uuid4"): "django-q2 wants a name for a cluster that no other one has",
    ("ops_app/leases.py", "uuid.uuid4"): "a holder's name must differ in every life of a process; it decides nothing",
}


def violations(source: str | ast.Module, *, stopwatch_allowed: bool) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of every use of a wall clock or of chance without a seed."""
    module = ast.parse(source) if isinstance(source, str) else source
    seeded_calls = {
        id(node.func)
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        and (node.args or node.keywords)
        and not any(isinstance(value, ast.Constant) and value.value is None for value in node.args)
    }
    for line, name, node in walker.uses(module):
        if name in WALL_CLOCKS or name in ALWAYS_RANDOM or (name in STOPWATCHES and not stopwatch_allowed):
            yield line, name
        elif name in SEEDED:
            if id(node) not in seeded_calls:
                yield line, f"{name} without a seed"
        elif name.startswith(("random.", "numpy.random.")) and name not in HARMLESS:
            yield line, name


@pytest.mark.parametrize("path", walker.package_files(), ids=walker.name_of)
def test_no_wall_clock_and_no_unseeded_chance_outside_the_clock_module(path: walker.Path) -> None:
    name = walker.name_of(path)
    if name == CLOCK_MODULE:
        return
    stopwatch_allowed = name.split("/")[0] not in PACKAGES_WITHOUT_STOPWATCH
    found = [
        f"{name}:{line}: {used}"
        for line, used in violations(walker.tree(path), stopwatch_allowed=stopwatch_allowed)
        if (name, used) not in EXEMPT
    ]
    assert found == [], f"take the time as an argument or from {CLOCK_MODULE}; make generators from a seed"


def test_every_exemption_is_still_needed() -> None:
    used = {
        (walker.name_of(path), name)
        for path in walker.package_files()
        for _, name in violations(walker.tree(path), stopwatch_allowed=False)
    }
    assert [key for key in EXEMPT if key not in used] == []


@pytest.mark.parametrize(
    "source, expected",
    [
        ("import time\ntime.time()", ["time.time"]),
        ("import time as t\nt.time_ns()", ["time.time_ns"]),
        ("from time import time as wall\nwall()", ["time.time"]),
        ("import datetime as dt\ndt.datetime.now(dt.UTC)", ["datetime.datetime.now"]),
        ("from datetime import datetime\nclock = datetime.now", ["datetime.datetime.now"]),
        ("from datetime import datetime\ndatetime(2025, 6, 1)", []),
        ("from django.utils import timezone\ntimezone.now()", ["django.utils.timezone.now"]),
        ("import time\ntime.monotonic()", ["time.monotonic"]),
        ("import random\nrandom.random()", ["random.random"]),
        ("from random import choice\nchoice([1])", ["random.choice"]),
        ("import random\nrandom.Random(7)", []),
        ("import random\nrandom.Random()", ["random.Random without a seed"]),
        ("import numpy as np\nnp.random.default_rng(seed=7)", []),
        ("import numpy as np\nnp.random.default_rng()", ["numpy.random.default_rng without a seed"]),
        ("import numpy as np\nnp.random.default_rng(None)", ["numpy.random.default_rng without a seed"]),
        ("import numpy as np\nnp.random.normal()", ["numpy.random.normal"]),
        ("import numpy as np\ndef f(rng: np.random.Generator): return rng.normal()", []),
        ("import uuid\nuuid.uuid4()", ["uuid.uuid4"]),
        ("def f(time): return time.time()", []),
    ],
)
def test_the_rule_itself_sees_every_disguise(source: str, expected: list[str]) -> None:
    found = violations(textwrap.dedent(source), stopwatch_allowed=False)
    assert [name for _, name in found] == expected
