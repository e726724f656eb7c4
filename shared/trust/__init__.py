"""What is signed, and how it is verified. Pure: bytes, keys and the time are handed in."""
