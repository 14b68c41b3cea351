"""From draws to predictions, to files, and back: what every posterior approximation shares."""
