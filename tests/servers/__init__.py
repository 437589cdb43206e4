"""Real servers for the tests, on free ports of the loopback address and in temporary folders."""
