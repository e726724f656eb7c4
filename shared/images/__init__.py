"""Judges of firmware images, before a byte is sent. Pure: bytes and layouts in, a verdict out."""
