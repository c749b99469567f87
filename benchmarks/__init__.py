"""Benchmarks. A package, because a library of that name is among those that the converters need."""
