"""Values in, values out: the rules of genworker, without disk, network, clock, randomness or logging."""
