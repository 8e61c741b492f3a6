"""Formats of parameters on disk: Orbax, Hugging Face; streaming, checking and merging them."""
