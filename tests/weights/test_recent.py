from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hwaga.weights.recent import RecentlyUsed


@given(st.integers(0, 30), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12), st.booleans())))
def test_against_a_plain_list(limit: int, uses: list[tuple[int, int, bool]]) -> None:
    recent = RecentlyUsed[int, bytes](limit, len)
    model: list[tuple[int, bytes]] = []
    for key, size, only_look in uses:
        known = [entry for entry in model if entry[0] == key]
        assert recent.get(key) == (known[0][1] if known else None)
        if known:
            model.remove(known[0])
            model.append(known[0])
        if not only_look:
            value = bytes(size)
            assert recent.put(key, value) is value
            model = [entry for entry in model if entry[0] != key] + [(key, value)]
            while len(model) > 1 and sum(len(kept) for _, kept in model) > limit:
                model.pop(0)
        assert recent.nbytes == sum(len(kept) for _, kept in model)
    recent.clear()
    assert recent.nbytes == 0
    assert all(recent.get(key) is None for key in range(6))
