"""Events leave the office's database through here, in order, at least once."""
