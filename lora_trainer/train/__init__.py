"""The one loop and what it is made of; it knows no family, no kind of network, no host and no widget."""
