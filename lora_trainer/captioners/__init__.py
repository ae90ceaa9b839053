"""Who describes images: each captioner's model is found, loaded and asked here; nothing else is known here."""
