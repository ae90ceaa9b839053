"""The doors a person comes in by; each is made from the options and shows what the jobs tell."""
