"""The fleet: every truck, its components, and what it says of itself."""
