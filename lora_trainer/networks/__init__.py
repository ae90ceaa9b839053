"""Trainable networks put on a frozen base model, and the files they are kept in."""
