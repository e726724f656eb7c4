"""Moves jobs on when their time has come."""
