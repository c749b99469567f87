"""edgeml: what the rooms share.

This package holds every type that two rooms exchange, every byte format, and the runtime adapters.
It imports none of `agent`, `converters`, `fleet`. Importing it loads nothing heavy.
"""

__version__ = "0.1.0"
