"""Experiments: what they claim, vary, measure and draw."""
