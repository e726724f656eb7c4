"""Simulated MCUs that answer a tester on a CAN bus and keep their flash, strict as the real part is."""
