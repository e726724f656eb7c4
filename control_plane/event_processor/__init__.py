"""Applies trucks' statuses, and only then acknowledges them."""
