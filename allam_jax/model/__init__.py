"""The Llama network, its presets, weights, vocabulary expansion and Hugging Face interop."""
