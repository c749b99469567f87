"""How long tests wait for what other processes and threads do: long, since a busy machine is no defect.

Within this time a thing comes or is lost. How soon it comes is measured in `benchmarks`, and asserted only where it is promised.
"""

import time

PATIENCE_S = 90.0
PAUSE_MAX_S = 0.1


def wait_for(condition, what="it", meanwhile=lambda: None):
    """Return what `condition` finds, once it finds something. What a `meanwhile` raises ends the wait, too."""
    until_s = time.monotonic() + PATIENCE_S
    pause_s = 0.002
    while not (found := condition()):
        meanwhile()
        assert time.monotonic() < until_s, f"waited {PATIENCE_S:.0f} s for {what}"
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, PAUSE_MAX_S)
    return found
