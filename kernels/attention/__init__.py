"""Causal grouped-query attention within segments."""
