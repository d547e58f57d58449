"""The simulator: the whole product on a virtual clock, with faults that a seed decides.

Read `history.py` first. Everything but disk, network, clock and threads is the product's own code.
"""
