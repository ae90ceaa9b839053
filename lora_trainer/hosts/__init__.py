"""The hosts that can lend a model; the only room that imports a WebUI's own modules."""
