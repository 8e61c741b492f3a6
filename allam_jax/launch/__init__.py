"""Sweeps: one experiment file becomes named runs, which are started, watched, collected and judged."""
