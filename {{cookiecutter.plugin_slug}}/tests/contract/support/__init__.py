"""What the tests of the contract share: no test of its own, and nothing to edit."""
