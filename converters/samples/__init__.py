"""Something to try edgeml on: `digits` trains small models on real data, `network` is the net that is written beside them."""
