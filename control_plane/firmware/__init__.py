"""What may be installed: every published firmware with its signed document and its image."""
