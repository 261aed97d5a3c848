"""The kinds of streets and what distinguishes them."""

from typing import NamedTuple


class Plan(NamedTuple):
    """A kind of street; pairs are ranges in metres, the others are chances or mean counts."""

    share: float  # of all streets
    lanes: tuple[int, int]  # driving lanes on our side at least and at most; as many come towards us
    walk: tuple[float, float]  # width of a sidewalk; (0, 0): there is none
    verge: float  # chance of a strip of grass between road and sidewalk
    setback: tuple[float, float]  # from sidewalk to houses
    fronts: tuple[str, ...]  # facade styles
    gap: float  # chance that a lot is a garden
    barriers: tuple[str, ...]
    people: float
    parked: float  # chance per parking space
    trees: float
    crossing: float

    @property
    def gabled(self) -> bool:
        """Detached houses have gables; the houses of closed rows turn their eaves to the street."""
        return self.setback[1] > 2.5


PLANS = {
    "boulevard": Plan(
        share=0.27,
        lanes=(1, 2),
        walk=(3.2, 5.5),
        verge=0.5,
        setback=(0, 0.4),
        fronts=("old", "brick", "modern", "office"),
        gap=0.12,
        barriers=(),
        people=8,
        parked=0.55,
        trees=0.6,
        crossing=0.5,
    ),
    "old": Plan(
        share=0.17,
        lanes=(1, 1),
        walk=(1.4, 2.4),
        verge=0.05,
        setback=(0, 0.2),
        fronts=("old", "old", "brick"),
        gap=0.06,
        barriers=("stone",),
        people=8,
        parked=0.3,
        trees=0.1,
        crossing=0.2,
    ),
    "suburb": Plan(
        share=0.24,
        lanes=(1, 1),
        walk=(1.5, 2.2),
        verge=0.6,
        setback=(4, 8),
        fronts=("house",),
        gap=0.25,
        barriers=("picket", "hedge", "stone", "brick", "iron", "mesh"),
        people=4,
        parked=0.35,
        trees=0.5,
        crossing=0.2,
    ),
    "motorway": Plan(
        share=0.12,
        lanes=(2, 3),
        walk=(0, 0),
        verge=1.0,
        setback=(6, 14),
        fronts=("modern", "house"),
        gap=0.85,
        barriers=("rail", "rail", "noise", "mesh"),
        people=0,
        parked=0,
        trees=0.1,
        crossing=0,
    ),
    "park": Plan(
        share=0.2,
        lanes=(1, 2),
        walk=(2.2, 3.5),
        verge=0.7,
        setback=(1, 3),
        fronts=("old", "modern", "house"),
        gap=0.6,
        barriers=("iron", "stone", "mesh", "hedge"),
        people=6,
        parked=0.4,
        trees=0.6,
        crossing=0.4,
    ),
}
