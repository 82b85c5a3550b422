"""The Pareto front of cost and quality."""

from collections.abc import Sequence


def pareto_front(costs: Sequence[float], losses: Sequence[float]) -> list[int]:
    """The places of points than which none is both cheaper and better, by rising cost; of equal ones the first."""
    front: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], losses[i])):
        if not front or losses[i] < losses[front[-1]]:
            front.append(i)
    return front
