"""Does what is to be done: one run of a cohort, from its lock to its last commit."""
