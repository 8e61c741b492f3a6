"""Instruments for the kernels: compiling, counting, comparing and timing. Nothing here runs in a training step."""
