"""Evaluation: bits per byte by language."""
