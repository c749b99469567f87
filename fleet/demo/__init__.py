"""`edgeml demo`: the whole way once, on one machine, with real processes.

`stage` prepares what is shown, `keeper` keeps processes alive as an init system would, `camera` feeds images and late
labels, `story` tells it and judges the end.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from pathlib import Path

from edgeml.errors import StateError


def run(directory: Path | None, *, keep: bool, devices: int, as_json: bool) -> None:
    """Tell the story.

    Args:
        directory: where to play it; a story that was interrupted there goes on. None: a new temporary directory.
        keep: leave the processes running at the end until interrupted, and the directory in place.
        devices: simulated devices, beside the three real agents.
        as_json: print one JSON document instead of the story.

    Raises:
        StateError: It did not end as it should.
        EdgemlError: A step failed.
    """
    import msgspec

    from .ending import rows
    from .keeper import Keeper
    from .stage import Stage
    from .story import Story, Wish
    from .telling import Telling

    temporary = None if directory is not None else Path(tempfile.mkdtemp(prefix="edgeml-demo-"))
    stage = Stage((directory or temporary or Path()).resolve())
    telling = Telling(quiet=as_json)
    telling.say(f"everything happens in {stage.directory}")
    try:
        with Keeper(stage.logs) as keeper:
            ending = Story(Wish(stage, devices), telling, keeper).tell()
            if as_json:
                print(msgspec.json.encode(ending).decode())
            else:
                telling.table(rows(ending, devices + 3))
            if keep:
                telling.say("Still running. Look around, then press Ctrl-C:")
                for line in stage.hints():
                    telling.say(f"    {line}")
                signal.pause()
        if not ending.good:
            raise StateError(
                "the story did not end as it should",
                hint=f"the processes' words are in {stage.logs}; --dir DIR keeps them",
            )
    finally:
        if temporary is not None and not keep:
            shutil.rmtree(temporary, ignore_errors=True)
