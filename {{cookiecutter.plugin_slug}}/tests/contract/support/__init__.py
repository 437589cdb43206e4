"""What the contract's tests share. It contains no tests, and nothing to edit."""
