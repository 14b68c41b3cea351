"""Markov chains: the flat potential, trajectories, warm-up, and the processes that run them."""
