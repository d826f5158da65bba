"""Binary addition: the adder, the authors' split and their source families (PLOT, binary addition)."""

import json
from pathlib import Path

import numpy as np
import pytest

from abstraction.causal.pairs import shared_pairs
from abstraction.tasks import addition

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "plot_known_answers.json"
# Active pairs for C1, C2, C3 by seed and role, and the first bases, in the authors' code.
ACTIVE = {
    0: ((923, 1328, 1420), (379, 644, 706), (417, 572, 700)),
    1: ((967, 1321, 1442), (360, 623, 705), (392, 600, 679)),
    2: ((875, 1287, 1453), (433, 638, 704), (411, 619, 669)),
    3: ((934, 1313, 1463), (423, 632, 691), (362, 599, 672)),
    4: ((923, 1323, 1441), (407, 625, 710), (389, 596, 675)),
}
FIRST = {0: [(6, 1), (10, 2), (2, 6), (11, 6)], 3: [(2, 12), (2, 2), (6, 7), (7, 14)]}


@pytest.mark.parametrize("bits", [1, 2, 4, 6])
def test_the_adder_adds(bits):
    inputs = addition.every_input(bits)
    np.testing.assert_array_equal(addition.adder(bits).run(inputs)["total"], inputs["a"] + inputs["b"])


def test_a_forced_carry_changes_later_bits_only():
    adder, inputs = addition.adder(4), addition.every_input(4)
    run = adder.run(inputs)
    for carry in range(1, 4):
        forced = adder.do(inputs, {f"c{carry}": 1 - run[f"c{carry}"]})
        for t in range(carry):
            np.testing.assert_array_equal(forced[f"s{t}"], run[f"s{t}"])
        # carrying in one more or one less
        expected = run["total"] + (1 - 2 * run[f"c{carry}"]) * 2**carry
        np.testing.assert_array_equal(forced["total"], expected)


@pytest.mark.parametrize("seed", ACTIVE)
def test_structured_banks_have_the_authors_counts(seed):
    banks = addition.structured_banks(seed)
    for bank, expected in zip((banks.fit, banks.calibration, banks.test), ACTIVE[seed], strict=True):
        assert tuple(bank.active.sum(axis=1)) == expected
    assert (banks.fit.size, banks.calibration.size, banks.test.size) == (3328, 1664, 1664)
    if seed in FIRST:
        assert list(zip(*(banks.fit.base[name][::26].tolist() for name in "ab"), strict=True))[:4] == FIRST[seed]


def test_all_bases_of_the_shipped_seeds_are_the_authors():
    if not REFERENCE.exists():
        pytest.skip("the reference tables are not beside this checkout")
    known = json.loads(REFERENCE.read_text())["seeds"]
    for seed, table in known.items():
        banks = addition.structured_banks(int(seed))
        for bank, name in ((banks.fit, "fit_bases"), (banks.calibration, "calib_bases"), (banks.test, "test_bases")):
            bases = list(zip(*(bank.base[letter][::26].tolist() for letter in "ab"), strict=True))
            assert bases == [tuple(base) for base in table[name]]


def test_active_pairs_over_all_bases():
    pool = addition.every_input(4)
    banks = addition.structured_banks(0)
    assert sum(bank.active.sum(axis=1) for bank in banks[:3]).tolist() == [1719, 2544, 2826]
    assert len(pool["a"]) * len(banks.families) == sum(bank.size for bank in banks[:3]) == 6656


def test_some_pairs_repeat():
    bank = addition.structured_banks(0).fit
    assert shared_pairs(bank, bank) == 3019


def test_bases_of_different_roles_are_disjoint():
    banks = addition.structured_banks(0)
    bases = [set(zip(bank.base["a"].tolist(), bank.base["b"].tolist(), strict=True)) for bank in banks[:3]]
    assert [len(base) for base in bases] == [128, 64, 64]
    assert len(set.union(*bases)) == 256


def test_families_flip_what_they_name():
    banks = addition.structured_banks(1)
    families, bank = np.arange(banks.fit.size) % len(banks.families), banks.fit
    run = [addition.adder(4).run(setting) for setting in (bank.base, bank.source)]
    for index, name in enumerate(banks.families):
        rows = families == index
        kind, what, *_ = name.split("-")
        if kind == "flip":
            number, bit = what[0], int(what[1])
            assert (bank.base[number][rows] ^ bank.source[number][rows] == 1 << bit).all()
            other = "b" if number == "a" else "a"
            assert (bank.base[other][rows] == bank.source[other][rows]).all()
        else:
            assert (run[0][what][rows] != run[1][what][rows]).all()


def test_targets_are_the_closest_by_a_loop():
    pool = addition.every_input(3)
    base = {"a": np.array([5]), "b": np.array([3])}
    sources = addition.structured_sources(base, pool, 3)
    adder, carry = addition.adder(3), 2
    own = {name: int(value[0]) for name, value in adder.run(base).items()}
    ranked = []
    for a in range(8):
        for b in range(8):
            run = adder.run({"a": a, "b": b})
            if run[f"c{carry}"] == own[f"c{carry}"]:
                continue
            early = sum(run[f"s{t}"] != own[f"s{t}"] for t in range(carry))
            names = [f"c{t}" for t in (1, 3)] + [f"s{t}" for t in range(3)]
            others = sum(run[name] != own[name] for name in names)
            ranked.append((early, others, bin(a ^ 5).count("1") + bin(b ^ 3).count("1"), a, b))
    start = addition.source_families(3).index(f"target-c{carry}-0")
    expected = [row[-2:] for row in sorted(ranked)[:5]]
    assert list(zip(sources["a"][0, start : start + 5], sources["b"][0, start : start + 5], strict=True)) == expected


def test_wider_adders_draw_their_pool():
    banks = addition.structured_banks(0, bits=8, fit=64, calibration=16, test=16)
    assert banks.fit.variables == tuple(f"c{t}" for t in range(1, 8))
    assert banks.fit.active.any(axis=1).all()


def test_encoding_spells_bits_least_significant_first():
    encoded = addition.encode({"a": np.array([6]), "b": np.array([1])})
    np.testing.assert_array_equal(encoded[0], [[0, 1], [1, 0], [1, 0], [0, 0]])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: addition.adder(0), "got an adder of 0 bits"),
        (lambda: addition.every_input(9), "got 9 bits, expected at most 6"),
        (lambda: addition.structured_banks(0, fit=300), "expected at most the 256 inputs"),
        (
            lambda: addition.structured_sources(addition.every_input(2), {"a": np.array([0]), "b": np.array([0])}, 2),
            "flip C1 of some base",
        ),
    ],
)
def test_impossible_requests_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
