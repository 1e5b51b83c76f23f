"""Cost of a model (complexity, latency, memory) and its place next to the scores."""
