"""What the benchmarks share: no figure of its own."""
