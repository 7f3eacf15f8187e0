"""Files like those in tests/data/golden, of other sizes: one module of makers per method."""
