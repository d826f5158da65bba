"""Numbers of the certified-interventional-fidelity experiments, to stand beside ours.

The network is the MNIST network of 784-512-512-10 units, the site its second hidden layer, reduced to `keep` units by
four methods: `cip-affine` and `cip-const` (affine and constant replacement after the curvature score on labels), `vbp`
(variance-based pruning, means) and `random`. Interventions exchange every kept unit with probability p; IIA is
1 - R, R the rate at which the two networks then disagree, over up to 10,000 trials at level .05.

Numbers are those of the result files that project released (UAI 2026, 4b8359f). They belong to its network of seed 0;
another network, such as one that is trained here, has others.
"""

from typing import NamedTuple

METHODS = ("cip-affine", "cip-const", "vbp", "random")
TRIALS = 10_000
LEVEL = 0.05
MASKS = (0.1, 0.2, 0.5)
FIDELITIES = (0.9, 0.95, 0.99)
_GROUPS = (
    ("iid", "hoeffding"),
    ("iid", "betting"),
    ("adaptive", "hoeffding"),
    ("adaptive", "betting"),
)


class Estimate(NamedTuple):
    """An IIA.

    Attributes:
      value: the point value of independent trials.
      low: lower end of the betting confidence sequence.
      high: upper end.
      adaptive: the point value of adaptive trials.
    """

    value: float
    low: float
    high: float
    adaptive: float


class Difference(NamedTuple):
    """The risks of two methods on the same trials.

    Attributes:
      value: first risk minus second.
      radius: half the width of the confidence sequence.
      significant: whether it excludes 0.
      first: risk of the first method.
      second: risk of the second.
    """

    value: float
    radius: float
    significant: bool
    first: float
    second: float


# Method and kept units; then for p = .1, .2 and .5: value, low, high, adaptive value. All 512 units give 1.
_IIA = """
cip-affine 384   .9893 .9852 .9925 .9896   .9728 .9667 .9782 .9733   .6951 .6775 .7125 .6977
cip-affine 256   .9838 .9786 .9879 .9812   .9518 .9428 .9595 .9566   .5584 .5389 .5779 .5482
cip-affine 128   .9559 .9484 .9627 .9554   .9014 .8891 .9127 .8982   .4839 .4647 .5031 .4837
cip-affine  64   .9292 .9203 .9376 .9322   .8578 .8466 .8690 .8570   .4616 .4417 .4815 .4607
cip-affine  32   .8236 .8087 .8375 .8212   .7279 .7128 .7436 .7277   .4091 .3888 .4297 .4154
cip-const  384   .1010 .0903 .1131 .1064   .1009 .0902 .1131 .1059   .1108 .0993 .1236 .1173
cip-const  256   .1009 .0901 .1131 .1070   .1014 .0906 .1135 .1077   .1028 .0920 .1151 .1110
cip-const  128   .1011 .0903 .1133 .1088   .1009 .0902 .1130 .1076   .1009 .0900 .1131 .1098
cip-const   64   .1013 .0907 .1134 .1076   .1011 .0903 .1133 .1080   .1012 .0905 .1133 .1086
cip-const   32   .1015 .0908 .1136 .1051   .1013 .0907 .1134 .1078   .1009 .0900 .1131 .1074
vbp        384   .9967 .9944 .9982 .9971   .9921 .9888 .9945 .9905   .8965 .8862 .9070 .8914
vbp        256   .9902 .9864 .9930 .9876   .9692 .9619 .9753 .9696   .6818 .6629 .7004 .6740
vbp        128   .9171 .9058 .9276 .9182   .8385 .8225 .8533 .8422   .4927 .4734 .5117 .5006
vbp         64   .6332 .6131 .6531 .6341   .5777 .5585 .5968 .5787   .3581 .3418 .3743 .3641
vbp         32   .4944 .4737 .5150 .4967   .4473 .4260 .4685 .4499   .2852 .2666 .3044 .2920
random     384   .9883 .9845 .9915 .9881   .9702 .9653 .9748 .9678   .7025 .6863 .7183 .6953
random     256   .9539 .9458 .9608 .9509   .8950 .8823 .9066 .8978   .5257 .5065 .5450 .5318
random     128   .7491 .7327 .7649 .7458   .6729 .6532 .6922 .6774   .3998 .3803 .4194 .4008
random      64   .4972 .4767 .5175 .4959   .4504 .4303 .4705 .4525   .2790 .2616 .2966 .2762
random      32   .1956 .1794 .2126 .1979   .1750 .1592 .1917 .1763   .1322 .1186 .1465 .1342
"""


def _estimates(row: str) -> dict[tuple[str, int, float], Estimate]:
    method, keep, *cells = row.split()
    numbers = [float(cell) for cell in cells]
    return {(method, int(keep), p): Estimate(*numbers[4 * at : 4 * at + 4]) for at, p in enumerate(MASKS)}


IIA = {key: estimate for row in _IIA.strip().splitlines() for key, estimate in _estimates(row).items()}
"""By method, kept units and p."""

# Trials until fidelity .9, .95, .99 is certified: independent trials by Hoeffding and by betting, then adaptive ones.
_ALL_UNITS = ((889, 4172, None), (64, 125, 613), (1976, 9156, None), (90, 177, 875))
_CERTIFIED: dict[tuple[str, int, float], tuple[tuple[int | None, ...], ...]] = {
    **{(method, 512, p): _ALL_UNITS for method in METHODS for p in MASKS},
    ("cip-affine", 384, 0.1): ((1081, 6746, None), (93, 233, None), (2591, None, None), (90, 177, None)),
    ("cip-affine", 384, 0.2): ((1425, None, None), (136, 413, None), (3754, None, None), (214, 1202, None)),
    ("cip-affine", 256, 0.1): ((1219, 9849, None), (93, 342, None), (3042, None, None), (90, 629, None)),
    ("cip-affine", 256, 0.2): ((3663, None, None), (272, None, None), (6968, None, None), (597, 8224, None)),
    ("cip-affine", 128, 0.1): ((3393, None, None), (131, None, None), (7686, None, None), (386, None, None)),
    ("cip-affine", 64, 0.1): ((None, None, None), (1813, None, None), (None, None, None), (578, None, None)),
    ("vbp", 384, 0.1): ((933, 4973, None), (64, 125, 1617), (2161, None, None), (90, 177, 2276)),
    ("vbp", 384, 0.2): ((998, 5679, None), (64, 125, None), (2451, None, None), (91, 188, None)),
    ("vbp", 256, 0.1): ((1141, 6888, None), (64, 252, None), (2942, None, None), (131, 473, None)),
    ("vbp", 256, 0.2): ((1756, None, None), (172, 1025, None), (4374, None, None), (310, 2008, None)),
    ("vbp", 128, 0.1): ((None, None, None), (4725, None, None), (None, None, None), (4463, None, None)),
    ("random", 384, 0.1): ((1081, 7239, None), (64, 228, None), (2851, None, None), (90, 355, None)),
    ("random", 384, 0.2): ((1407, None, None), (200, 377, None), (4668, None, None), (238, 2685, None)),
    ("random", 256, 0.1): ((3549, None, None), (249, None, None), (9285, None, None), (443, None, None)),
}

CERTIFIED: dict[tuple[str, int, float, str, str, float], int] = {
    (*row, sampling, confidence, fidelity): count
    for row, groups in _CERTIFIED.items()
    for (sampling, confidence), counts in zip(_GROUPS, groups, strict=True)
    for fidelity, count in zip(FIDELITIES, counts, strict=True)
    if count is not None
}
"""Trials needed, by method, kept units, p, sampling, sequence and fidelity; what is not here was not certified."""

PAIRED: dict[tuple[str, str, str], Difference] = {
    ("cip-affine", "cip-const", "hoeffding"): Difference(-0.4556, 0.067242, True, 0.4416, 0.8972),
    ("cip-affine", "cip-const", "betting"): Difference(-0.4556, 0.022173, True, 0.4416, 0.8972),
    ("cip-const", "vbp", "hoeffding"): Difference(0.579, 0.067242, True, 0.8972, 0.3182),
    ("cip-const", "vbp", "betting"): Difference(0.579, 0.021157, True, 0.8972, 0.3182),
    ("vbp", "random", "hoeffding"): Difference(-0.1561, 0.067242, True, 0.3182, 0.4743),
    ("vbp", "random", "betting"): Difference(-0.1561, 0.016592, True, 0.3182, 0.4743),
    ("cip-affine", "random", "hoeffding"): Difference(-0.0327, 0.067242, False, 0.4416, 0.4743),
    ("cip-affine", "random", "betting"): Difference(-0.0327, 0.015689, True, 0.4416, 0.4743),
}
"""First and second method, with 256 units and p = .5, and the sequence."""

SENSITIVITY_RADIUS = 0.033621
"""Hoeffding, 10,000 trials."""
SENSITIVITY: dict[tuple[str, float], float] = {
    ("zero_one", 0.05): 0.993300,
    ("clipped_kl", 0.05): 0.990277,
    ("clipped_l2", 0.05): 0.985493,
    ("zero_one", 0.1): 0.990600,
    ("clipped_kl", 0.1): 0.985393,
    ("clipped_l2", 0.1): 0.979841,
    ("zero_one", 0.2): 0.968600,
    ("clipped_kl", 0.2): 0.950330,
    ("clipped_l2", 0.2): 0.943656,
    ("zero_one", 0.5): 0.674400,
    ("clipped_kl", 0.5): 0.577733,
    ("clipped_l2", 0.5): 0.609091,
}
"""Fidelity of vbp with 256 units, by what disagreement is and p."""

COVERAGE_RISK = 0.32253
"""The risk to cover: vbp, 256 units, p = .5, from 100,000 trials."""
_COVERAGE = {
    ("iid", "hoeffding"): (1.0, 1.0, 1.0),
    ("adaptive", "hoeffding"): (1.0, 1.0, 1.0),
    ("aggressive_peeking", "hoeffding"): (1.0, 1.0, 1.0),
    ("iid", "betting"): (1.0, 0.998, 0.996),
    ("adaptive", "betting"): (1.0, 1.0, 0.996),
    ("aggressive_peeking", "betting"): (0.992, 0.966, 0.93),
}
COVERAGE: dict[tuple[str, str, float], float] = {
    (protocol, confidence, level): share
    for (protocol, confidence), shares in _COVERAGE.items()
    for level, share in zip((0.01, 0.05, 0.1), shares, strict=True)
}
"""Share of 500 sequences of 2,000 trials that cover the risk, by protocol, sequence and level."""
