"""The embedded base model, its maker and the sample set: a training with nothing to download."""
