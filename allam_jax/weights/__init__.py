"""Parameters on disk, in Orbax and Hugging Face formats: reading, writing, checking, streaming and merging them."""
