"""What could not be handled, with its reason and its bytes, until a person decides."""
