"""Tells trucks what to do: paced, newest revision only, again until they answer."""
