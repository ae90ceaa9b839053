"""Jobs over HTTP, in JSON."""
