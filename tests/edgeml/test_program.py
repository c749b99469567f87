"""How a program ends: an exit code and one line, also when Ctrl-C comes while it is ending."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"


def end(main):
    """Run a program whose main is `main`, and interrupt it once more while the interpreter shuts down."""
    program = f"""
        import atexit, os, signal
        from edgeml.errors import ConfigError
        from edgeml.program import guarded

        def main():
            print("begun", flush=True)
            {main}

        atexit.register(lambda: {INTERRUPT})
        guarded(main)
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("main", "said"),
    [
        ("pass", ""),
        (
            'raise ConfigError("no such file", hint="give another")',
            "error: no such file\nhint: give another\n",
        ),
        (INTERRUPT, "interrupted\n"),
    ],
)
def test_an_interrupt_while_the_program_ends_shows_no_traceback(main, said):
    done = end(main)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "begun\n", said)
