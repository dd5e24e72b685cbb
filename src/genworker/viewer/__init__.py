"""The live view: the same findings, tables and texts as the report, served on this machine while a run
goes on.
"""
