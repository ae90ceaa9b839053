"""The data-set doctor: what in a folder of images and captions spoils a training, and what can be done about it."""
