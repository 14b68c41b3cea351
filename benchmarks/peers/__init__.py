"""What other packages cost on the suite's network, each in an environment of its own."""
