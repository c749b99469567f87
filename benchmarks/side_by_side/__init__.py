"""What `benchmarks/agent.py` is made of: models, servers, clients."""
