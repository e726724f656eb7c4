"""The truck's gateway: takes commands, verifies, flashes, reports; loses nothing."""
