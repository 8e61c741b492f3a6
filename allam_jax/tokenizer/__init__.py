"""Tokenizers: training, merging, measuring and saving them; text to ids and back."""
