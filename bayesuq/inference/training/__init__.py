"""The one minibatch loop of all that optimises: its options, its rows, its checkpoints."""
