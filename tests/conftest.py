"""For all tests: one thread for libraries that would take all processors.

Three test processes run at once, each beside agents, brokers and runtimes of its own. Threads that spin for each other take
the processor from those that work: a test of scikit-learn's boosted trees took 42 s instead of 2.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
