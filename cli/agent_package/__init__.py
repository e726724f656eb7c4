"""Builds the agent's package: its tree with the wheels of another machine, and a .deb around it."""
