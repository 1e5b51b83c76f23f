"""Released checkpoints of other code, rewritten to our layout."""
