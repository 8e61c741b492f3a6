"""From an English Llama to a strong second-language one, in JAX."""

__version__ = "0.1.0"
