"""How a program ends: an exit code and one line, also when Ctrl-C comes while it is ending."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from edgeml.program import INTERRUPTED_EXIT_CODE

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


FINDER = """
    import os, signal, sys

    class Interrupting:
        def find_spec(self, name, path=None, target=None):
            if name == "MODULE":
                sys.meta_path.remove(self)
                print("sent", flush=True)
                os.kill(os.getpid(), signal.SIGINT)

    sys.meta_path.insert(0, Interrupting())
"""
"""Sends the signal while the program looks for the module, before a line of it has run."""


@pytest.mark.parametrize(
    ("script", "module"),
    [
        ("edgeml", "click"), ("edgeml", "importlib.metadata"), ("edgeml", "edgeml.doctor"),
        ("edgeml-agent", "click"), ("edgeml-agent", "agent.cli"), ("edgeml-agent", "agent.buffer_command"),
    ],
)  # fmt: skip
def test_an_interrupt_while_the_program_is_loaded_shows_no_traceback(script, module, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(FINDER.replace("MODULE", module)))
    done = subprocess.run(
        [Path(sys.executable).parent / script, "--help"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED_EXIT_CODE, "sent\n", "interrupted\n")
