"""``report``."""
