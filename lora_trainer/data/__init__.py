"""From a folder of images to batches of latents: scan, captions, buckets, order, caches, data set."""
