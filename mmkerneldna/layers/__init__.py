"""Convolution layers, one paper idea per file."""
