"""Hooks and run-time pieces on top of mmengine."""
