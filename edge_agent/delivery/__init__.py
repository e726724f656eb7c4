"""The way of bytes to the disk, over links that cost and break."""
