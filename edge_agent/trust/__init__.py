"""What may be flashed at all: signatures, metadata, counters, time, manifests."""
