"""`edgeml demo`: the whole way once, on one machine, with real processes.

`stage` prepares what is shown, `keeper` keeps processes alive as an init system would, `camera` feeds images and late
labels, `story` tells it and judges the end.
"""
