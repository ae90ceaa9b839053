"""Causal language models: found, recognised and loaded from transformers folders and GGUF files, and asked."""
