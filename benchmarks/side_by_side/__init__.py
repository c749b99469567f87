"""What `benchmarks/agent.py` and `benchmarks/converters.py` are made of: models, servers, clients, peers."""
