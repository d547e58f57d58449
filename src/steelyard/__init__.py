"""Steelyard serves AI models, counts every token as the model does, and charges for just that."""

__version__ = "0.1.0"

if not __debug__:
    # Assertions guard the money, so a build that strips them must not run.
    raise SystemExit("steelyard: do not run under 'python -O': assertions are part of the program")
