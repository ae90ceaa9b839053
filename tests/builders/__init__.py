"""Small real inputs that tests share: checkpoints, pictures, runs."""
