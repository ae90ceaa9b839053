"""LoRA training inside a Stable Diffusion WebUI, or without one from a single YAML file."""

__version__ = "0.1.0"
