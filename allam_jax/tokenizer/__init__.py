"""Tokenizers: train, merge, measure, save. Text to ids and back."""
