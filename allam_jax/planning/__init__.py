"""Predicts the memory, communication, time and energy of a run on a described cluster."""
