"""From an English Llama to a strong second-language one, in JAX."""
