"""One file = one runnable record; `base.py` holds every default, once."""
