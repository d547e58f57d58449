"""Splits an amount by weights so that the parts add up to it, to the pico."""

from collections.abc import Mapping


def split_by_weight(picos: int, weights: Mapping[str, int]) -> dict[str, int]:
    """What each bears; the picos that no whole division gives go to the largest remainders, and
    among equals to the first name."""
    assert weights, "somebody bears it"
    assert picos >= 0, f"a cost is not negative: {picos}"
    total = sum(weights.values())
    shares = {name: picos * weight // total for name, weight in weights.items()}
    left = picos - sum(shares.values())
    by_remainder = sorted(weights, key=lambda name: (-(picos * weights[name] % total), name))
    for name in by_remainder[:left]:
        shares[name] += 1
    return shares
