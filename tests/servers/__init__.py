"""Real servers for the tests: on loopback, free ports and temporary folders, stopped after use."""
