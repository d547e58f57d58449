"""`python -m steelyard` is the `steelyard` command."""

from steelyard.entrypoints.cli.main import run

if __name__ == "__main__":
    run()
