"""Disk: the catalogue and the membership that are read, the generations that are committed."""
