"""Sweeps: turns an experiment file into named runs, and starts, watches, collects and judges them."""
