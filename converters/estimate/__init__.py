"""What can be said of a model without running it: operators, sizes, memory over time, and a latency by a roofline."""
