"""Where all rooms meet: a run, and the verbs on files (export, merge, inspect). Only wiring."""
