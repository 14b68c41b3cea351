"""What a launcher such as `torchrun` says to each process that it starts: how many there are, and which one this is."""

import os


def are_several() -> bool:
    """Whether a launcher has started several processes, which then fit together."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this process is the one that writes files and prints."""
    return not are_several() or os.environ["RANK"] == "0"
