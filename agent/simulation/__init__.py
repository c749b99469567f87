"""Simulated devices: `world` is what they share, `installer` and `device` are one device, `crowd` runs many."""
