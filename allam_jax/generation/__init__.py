"""Decoding and sampling."""
