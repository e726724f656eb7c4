"""Stories that the whole system plays from end to end, for demos and tests."""
