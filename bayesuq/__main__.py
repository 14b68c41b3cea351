"""`python -m bayesuq`, the same as `bayesuq`."""

from bayesuq.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
