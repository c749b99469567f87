"""Lets `python -m edgeml` do what the `edgeml` script does."""

from .cli import main

main()
