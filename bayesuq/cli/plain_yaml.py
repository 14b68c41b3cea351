"""YAML of the kind that options are written in: short, shallow, and without references.

A reader of YAML follows references, so that some lines can stand for billions of values, and calls itself for each
bracket, so that some thousands of them end the process. Both are refused before it reads.
"""

import yaml

LONGEST = 2**18  # characters
DEEPEST = 20  # containers within each other
OPENING = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
CLOSING = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


def check_plain(text: str) -> None:
    r"""Look at a text before it is read.

    Raises:
        yaml.YAMLError: It is too long or too deep, refers to its own parts, or is no YAML.

    Example:
        >>> check_plain("seed: 1\nmethods: [map, ensemble]")
        >>> check_plain("a: &x [1, 2]\nb: *x")
        Traceback (most recent call last):
        yaml.error.YAMLError: Options must not refer to each other by & and *. Write them out.
    """
    if len(text) > LONGEST:
        raise yaml.YAMLError(f"Options must not be longer than {LONGEST} characters; got {len(text)}.")
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.AliasToken | yaml.AnchorToken):
            raise yaml.YAMLError("Options must not refer to each other by & and *. Write them out.")
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        if depth > DEEPEST:
            raise yaml.YAMLError(f"Options must not stand in each other more than {DEEPEST} deep.")
