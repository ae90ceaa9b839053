"""Tensors in files: read lazily, written whole or not at all. Knows nothing of models or networks."""
