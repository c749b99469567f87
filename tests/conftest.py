"""For all tests: their order, one thread for libraries that would take all processors, no deadlines, and less to collect.

Three test processes run at once, each beside agents, brokers and runtimes of its own. Threads that spin for each other take
the processor from those that work: a test of scikit-learn's boosted trees took 42 s instead of 2.

Folders with files that take minutes come first. Else one of them is begun last and two of three processes wait for it.

No example of a property has a deadline: how long it takes says more of what runs beside it than of what is tested.

What collecting the tests has made (some million objects) stays to the end: frozen, the garbage collector leaves it alone,
which took more than a second each time that an agent in a test's own process gave memory back.
"""

import gc
import os
from pathlib import Path

import hypothesis

SLOW_FIRST = ("faults", "converters", "system", "identity", "broker")

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# On top of hypothesis's own choice, which in CI is the same examples each time.
hypothesis.settings.register_profile(
    "untimed",
    hypothesis.settings.default,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(items):
    """Sort by folder; within a folder nothing is moved."""
    root = Path(__file__).parent

    def place(item):
        folder = item.path.relative_to(root).parts[0] if item.path.is_relative_to(root) else ""
        return SLOW_FIRST.index(folder) if folder in SLOW_FIRST else len(SLOW_FIRST)

    items.sort(key=place)


def pytest_collection_finish():
    """Leave what is there for good out of all later collections."""
    gc.collect()
    gc.freeze()
