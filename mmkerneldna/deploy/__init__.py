"""Bake, fold, compile and export."""
