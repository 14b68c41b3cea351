"""The joint density p(theta, y | x) in its two readings: of named sites, and of one flat vector."""
