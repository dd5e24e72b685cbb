"""One cohort over many processes: the driver's side, the worker's side, and what they say to each other."""
