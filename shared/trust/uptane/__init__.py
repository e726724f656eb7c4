"""Uptane Standard 2.1.0: two repositories that must agree, and every check of 5.4.4. Pure."""
