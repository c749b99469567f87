"""The sandbox: a process that opens files which nobody vouches for, and can do nothing else.

Layers, each of which holds by itself: a network namespace, Landlock, a seccomp filter, limits of resources. The process
puts them on itself (`confinement.py`), then tries to break out of them (`breakout.py`), and only then opens anything.
Nothing here needs root, and nothing imports more than the standard library.
"""
