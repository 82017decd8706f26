from dataclasses import replace

import numpy as np
import pytest
import torch

from gdml.models import bank
from gdml.models.bank import ReferenceBank, nearest_rows


def brute_force(queries, keys, k, exclude=None):
    """Rows by cosine, one query at a time; of equals the first."""
    rows = []
    for i, q in enumerate(queries):
        scored = []
        for j, x in enumerate(keys):
            if exclude is not None and exclude[0][i] == exclude[1][j]:
                continue
            length = np.linalg.norm(q) * np.linalg.norm(x)
            scored.append((-(q @ x) / length if length else 0.0, j))
        rows.append([j for _, j in sorted(scored)[:k]])
    return np.array(rows)


@pytest.mark.parametrize("chunk", [1 << 24, 100])
@pytest.mark.parametrize("k", [1, 7, 40])
def test_as_a_loop_finds_them(monkeypatch, chunk, k):
    monkeypatch.setattr(bank, "_CHUNK", chunk)
    rng = np.random.default_rng(0)
    queries, keys = rng.normal(size=(23, 5)), rng.normal(size=(40, 5)) * rng.uniform(0.1, 30, size=(40, 1))
    cosines, rows = nearest_rows(torch.tensor(queries), torch.tensor(keys), k)
    np.testing.assert_array_equal(rows, brute_force(queries, keys, k))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, keys)]
    np.testing.assert_allclose(cosines, np.take_along_axis(unit[0] @ unit[1].T, rows.numpy(), 1), atol=1e-6)


def test_rows_of_the_same_number_are_not_found():
    rng = np.random.default_rng(1)
    queries, keys = rng.normal(size=(12, 4)), rng.normal(size=(30, 4))
    numbers = (torch.arange(12) % 4, torch.arange(30) % 5)
    _, rows = nearest_rows(torch.tensor(queries), torch.tensor(keys), 6, numbers)
    np.testing.assert_array_equal(rows, brute_force(queries, keys, 6, [n.numpy() for n in numbers]))
    assert not (numbers[0][:, None] == numbers[1][rows]).any()


def test_of_equals_the_first_is_found():
    keys = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [4.0, 0.0], [1.0, 0.0], [8.0, 0.0], [0.0, 2.0]])
    queries = torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    for k, expected in (
        (2, [[1, 2], [0, 6], [0, 1]]),
        (4, [[1, 2, 3, 4], [0, 6, 1, 2], [0, 1, 2, 3]]),
        (6, [[1, 2, 3, 4, 5, 0], [0, 6, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]),
    ):
        assert nearest_rows(queries, keys, k)[1].tolist() == expected
    many = torch.ones(5000, 2)
    assert nearest_rows(queries, many, 50)[1].tolist() == [list(range(50))] * 3


def test_zero_vectors_have_a_finite_cosine():
    keys = torch.stack([torch.zeros(3), torch.ones(3), -torch.ones(3)])
    cosines, rows = nearest_rows(torch.stack([torch.zeros(3), torch.ones(3)]), keys, 3)
    torch.testing.assert_close(cosines, torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, -1.0]]))
    assert rows.tolist() == [[0, 1, 2], [1, 0, 2]]


def test_autocast_does_not_change_the_order():
    g = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(9, 64, generator=g), torch.randn(500, 64, generator=g)
    with torch.autocast("cpu", torch.bfloat16):
        found = nearest_rows(queries, keys, 20)
    for a, b in zip(found, nearest_rows(queries, keys, 20), strict=True):
        assert torch.equal(a, b)


def test_no_queries():
    cosines, rows = nearest_rows(torch.zeros(0, 3), torch.ones(4, 3), 2)
    assert cosines.shape == rows.shape == (0, 2)


@pytest.mark.parametrize("k", [0, 4])
def test_more_rows_than_there_are(k):
    with pytest.raises(ValueError, match=f"`k` must lie between 1 and the 3 rows of the bank, found {k}"):
        nearest_rows(torch.ones(2, 2), torch.ones(3, 2), k)


def test_more_rows_than_exclusion_leaves():
    with pytest.raises(ValueError, match="`k` is 3, but for a query fewer rows of the bank are left"):
        nearest_rows(torch.ones(1, 2), torch.ones(3, 2), 3, (torch.tensor([0]), torch.arange(3)))


@pytest.mark.parametrize("dim", [0, 32])
def test_a_bank_holds_what_it_is_given(spots, dim):
    made = ReferenceBank(0, 6, dim)
    assert len(made) == 0 and made.mean().tolist() == [0.0] * 6
    rows = torch.cat([torch.arange(5, 20), torch.arange(40, 45)])
    passed = [batch.spot for batch in made.fill(spots.in_order(rows, 6))]
    assert torch.equal(torch.cat(passed), rows) and torch.equal(made.spot, rows) and len(made) == 20
    assert made.slide.tolist() == [0] * 15 + [1] * 5 and made.largest_slide() == 15
    assert torch.equal(made.expression, spots.expression[rows])
    assert torch.equal(made.features, spots.batch(rows).pooled[:, :dim])
    torch.testing.assert_close(made.mean(), spots.expression[rows].mean(0))

    batch = spots.batch(torch.tensor([41, 6]))
    assert [x.tolist() for x in made.own_rows(batch, "spot")] == [[41, 6], rows.tolist()]
    assert made.own_rows(batch, "slide")[0].tolist() == [1, 0]

    # the numbers of spots are those of one run, and not saved
    state = made.state_dict()
    assert set(state) == {"features", "expression"}
    again = ReferenceBank(20, 6, dim)
    again.load_state_dict(state)
    assert torch.equal(again.features, made.features) and torch.equal(again.expression, made.expression)
    assert again.spot.tolist() == again.slide.tolist() == [-1] * 20


def test_a_bank_needs_expression(spots):
    with pytest.raises(ValueError, match="no expression to learn from"):
        list(ReferenceBank(0, 6).fill([replace(spots.batch(torch.arange(4)), expression=None)]))
