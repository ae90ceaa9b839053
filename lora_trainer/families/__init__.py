"""Kinds of base models: how each is recognised, built from lent tensors, and named in files."""
