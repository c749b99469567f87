"""Takes the process that imports this out of its parent's process group.

Imported by the forkserver, before it forks any worker, and by nothing else. Shells, terminals and `timeout` send their
signals to whole groups; were workers to end with the supervisor, their last counts would be lost, and the supervisor
would take their ends for crashes. They end when it tells them to, or with it if it is killed.
"""

import os

os.setpgid(0, 0)
