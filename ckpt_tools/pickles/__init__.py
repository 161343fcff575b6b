"""Pickle streams, read as data: opcodes become inert values, and values become tensors and modules."""
