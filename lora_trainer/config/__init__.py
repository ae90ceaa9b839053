"""What a run is: one typed definition of every option; YAML, flags, schema, form and docs are read off it."""
