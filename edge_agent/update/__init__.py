"""One update: decided purely, written to the journal, done act by act."""
