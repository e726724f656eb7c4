"""What outlives a power cut: the journal, commands in, statuses out."""
