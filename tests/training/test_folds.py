import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from gdml._provenance import counts_digest, row_digests
from gdml.training.folds import Fold, check_groups, check_twins, deal, make_folds

GROUPS = {"B4": "B", "C2": "C", "C3": "C", "D1": "D"}
memberships = st.lists(st.integers(0, 6), min_size=2, max_size=12).filter(lambda g: len(set(g)) > 1)


@settings(deadline=None)
@given(memberships, st.integers(0, 100), st.data())
def test_every_slide_is_scored_once_and_no_group_is_split(members, seed, data):
    groups = {f"S{i}": f"G{g}" for i, g in enumerate(members)}
    k = data.draw(st.none() | st.integers(2, len(set(members))))
    folds = make_folds(groups, k, seeds=[seed])
    assert len(folds) == (len(set(members)) if k is None else k)
    assert sorted(slide for fold in folds for slide in fold.test) == sorted(groups)
    for fold in folds:
        assert sorted(fold.train + fold.test) == sorted(groups)
        assert fold.train and fold.test
        assert not {groups[s] for s in fold.train} & {groups[s] for s in fold.test}


def test_leaving_one_out_names_the_folds_after_the_groups():
    folds = make_folds(GROUPS, None)
    assert folds[1] == Fold("C", ("B4", "D1"), ("C2", "C3"))
    assert [fold.name for fold in folds] == ["B", "C", "D"]


def test_the_seed_deals_the_groups():
    groups = {f"S{i}": f"S{i}" for i in range(20)}
    assert make_folds(groups, 4, seeds=[1]) == make_folds(groups, 4, seeds=[1]) != make_folds(groups, 4, seeds=[2])


sizes_of_groups = st.lists(st.integers(1, 500), min_size=2, max_size=12).map(
    lambda sizes: {f"G{i}": size for i, size in enumerate(sizes)}
)


@settings(deadline=None)
@given(sizes_of_groups, st.integers(0, 100), st.booleans(), st.data())
def test_folds_differ_by_no_more_than_the_largest_group(sizes, seed, largest_first, data):
    n = data.draw(st.integers(2, len(sizes)))
    parts = deal(sizes, n, seed=seed, largest_first=largest_first)
    assert sorted(name for part in parts for name in part) == sorted(sizes)
    assert len(parts) == n and all(parts)
    totals = [sum(sizes[name] for name in part) for part in parts]
    assert max(totals) - min(totals) <= max(sizes.values())


def test_the_largest_groups_are_dealt_first_and_the_seed_decides_between_equal_ones():
    sizes = {"a": 500, "b": 300, "c": 250, "d": 50}
    assert {tuple(map(tuple, sorted(deal(sizes, 2, seed=seed)))) for seed in range(10)} == {(("a", "d"), ("b", "c"))}
    slides = {"s1": 500, "s2": 100, "s3": 200, "s4": 250, "s5": 50}
    groups = {"s1": "a", "s2": "b", "s3": "b", "s4": "c", "s5": "d"}
    assert {fold.test for fold in make_folds(groups, 2, sizes=slides)} == {("s1", "s5"), ("s2", "s3", "s4")}
    equal = dict.fromkeys("abcd", 10)
    assert len({tuple(map(tuple, sorted(deal(equal, 2, seed=seed)))) for seed in range(30)}) == 3


def test_each_repeat_deals_the_groups_differently():
    groups = {f"S{i}": f"G{i}" for i in range(6)}
    sizes = {f"S{i}": 100 + 37 * i for i in range(6)}  # all different: the seed alone would deal them alike
    folds = make_folds(groups, 3, sizes=sizes, seeds=range(4), n_repeats=4)
    assert [fold.repeat for fold in folds] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert folds[4].name == "repeat 2, 1" and len({fold.name for fold in folds}) == 12
    dealt = {frozenset(fold.test for fold in folds if fold.repeat == repeat) for repeat in range(4)}
    assert len(dealt) == 4
    for repeat in range(4):
        assert sorted(slide for fold in folds if fold.repeat == repeat for slide in fold.test) == sorted(groups)
    assert folds == make_folds(groups, 3, sizes=sizes, seeds=range(4), n_repeats=4)
    once = make_folds(groups, 3, sizes=sizes, seeds=[0])
    assert [fold.test for fold in once] == [fold.test for fold in folds[:3]]


@pytest.mark.parametrize("folds", [None, {"x": (["B4"], ["D1"])}])
def test_what_is_the_same_every_time_is_not_repeated(folds):
    with pytest.raises(ValueError, match="same every time: pass a number of folds, folds=3, or .* seeds=2"):
        make_folds(GROUPS, folds, seeds=[0, 1], n_repeats=2)


def test_more_repeats_than_ways_to_deal():
    with pytest.raises(ValueError, match="3 groups can be dealt to 2 folds in 3 ways only: pass n_repeats=3"):
        make_folds(GROUPS, 2, seeds=range(5), n_repeats=5)


def test_given_splits_are_taken_as_they_are():
    assert make_folds(GROUPS, {"x": (["B4", "C2"], "D1")}) == [Fold("x", ("B4", "C2"), ("D1",))]


@pytest.mark.parametrize(
    ("folds", "match"),
    [
        (4, "at least 4 groups.*there are 3 groups .*B, C, D"),
        (1, "`folds` is 1: give a number of two or more"),
        (True, "`folds` is True"),
        ("patient", "`folds` is 'patient'"),
        ({"x": (["B4"], ["C9"])}, r"`folds\['x'\]` names 'C9', which is no slide. Did you mean 'C3' or 'C2'"),
        ({"x": (["B4", "C2"], ["C2"])}, "has C2 on both sides"),
        ({"x": ([], ["C2"])}, "no slide to learn from"),
        ({"x": (["C2"], [])}, "no slide to score"),
        ({"x": 3}, r"`folds\['x'\]` is 3: give two lists"),
    ],
)
def test_impossible_folds(folds, match):
    with pytest.raises(ValueError, match=match):
        make_folds(GROUPS, folds)


def test_one_group_can_not_be_left_out():
    with pytest.raises(ValueError, match=r"there is 1 group \(C\).*folds='blocks'.*unseen part of a known slide"):
        make_folds({"C2": "C", "C3": "C"}, None)


def test_a_group_on_both_sides_is_refused_unless_it_is_asked_for():
    folds = make_folds(GROUPS, {"to C3": (["B4", "C2"], ["C3"])})
    with pytest.raises(ValueError, match="patient C on both sides.*allow_shared_groups=True"):
        check_groups(folds, GROUPS, allow_shared=False, column="patient")
    check_groups(folds, GROUPS, allow_shared=True, column="patient")


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_the_hash_of_counts_knows_the_same_spots_in_any_order_and_form(seed):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.5, (rng.integers(1, 9), rng.integers(1, 7)))
    digest = counts_digest(row_digests(counts))
    order = rng.permutation(len(counts))
    rows, cols = np.indices(counts.shape).reshape(2, -1)
    with_zeros = sparse.csr_array((counts.ravel().astype(np.float32), (rows, cols)), shape=counts.shape)
    assert with_zeros.nnz == counts.size  # zeros are stored
    assert (
        counts_digest(row_digests(with_zeros)) == counts_digest(row_digests(sparse.csr_matrix(counts[order]))) == digest
    )
    changed = counts.copy()
    changed[rng.integers(len(counts)), rng.integers(counts.shape[1])] += 1
    assert counts_digest(row_digests(changed)) != digest


def test_a_copy_of_a_slide_on_the_other_side_is_refused():
    folds = make_folds(GROUPS, None)
    digests = {"B4": "x", "C2": "y", "C3": "y", "D1": "z"}
    check_twins(folds, digests)  # both on one side
    with pytest.raises(ValueError, match=r"Fold 'B'.*'D1' \(train\) and 'B4' \(test\) have the same counts"):
        check_twins(folds, digests | {"D1": "x"})


def test_blocks_of_a_slide_are_no_copies_of_it():
    both = Fold("block 1", ("A", "B"), ("A", "B"))
    check_twins([both], {"A": "x", "B": "y"})
    with pytest.raises(ValueError, match="same counts"):
        check_twins([both], {"A": "x", "B": "x"})
