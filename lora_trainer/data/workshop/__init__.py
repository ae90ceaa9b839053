"""The data workshop: a folder of images and captions kept open, to be looked through, edited and put in order."""
