from itertools import combinations, product

import pytest
from covering import cover_pairs


@pytest.mark.parametrize(
    ("sizes", "most"), [((2, 5), 10), ((3, 3, 3), 12), ((5, 5, 3), 30), ((3, 2, 3, 3), 14), ((4, 1, 2), 8)]
)
def test_any_two_values_have_a_row_in_common(sizes, most):
    axes = [[f"{axis}{value}" for value in range(size)] for axis, size in enumerate(sizes)]
    rows = cover_pairs(*axes)
    assert len(rows) == len(set(rows)) <= most
    assert set(rows) <= set(product(*axes))
    for (i, one), (j, other) in combinations(enumerate(axes), 2):
        assert {(row[i], row[j]) for row in rows} == set(product(one, other))
