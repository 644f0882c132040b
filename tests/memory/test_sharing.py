"""Which model gives way to another: no more than has to, and whoever was used longest ago first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hwaga.memory.sharing import HeldUnit, Holding, give_way, neighbours

UNITS = st.builds(HeldUnit, st.integers(1, 9), st.booleans(), st.booleans())
HOLDINGS = st.lists(
    st.builds(Holding, st.sampled_from("abc"), st.integers(0, 9), st.lists(UNITS, max_size=5).map(tuple)), max_size=4
)


def there(holdings: list[Holding]) -> int:
    return sum(holding.device_bytes for holding in holdings)


def copies(holdings: list[Holding]) -> int:
    return sum(holding.copied_bytes for holding in holdings)


@given(HOLDINGS, st.integers(-5, 60), st.integers(0, 60))
def test_what_stays_fits_and_no_more_leaves_than_has_to(before: list[Holding], room: int, pinned: int) -> None:
    after = give_way(before, room, pinned)
    assert there(after) <= max(room, 0)
    assert copies(after) <= pinned or copies(after) == 0
    if there(before) <= room:
        assert there(after) == there(before)
    if copies(before) <= pinned:  # what there is of copies stays
        kept = [unit.copied or not was.copied
                for old, new in zip(before, after, strict=True)
                for was, unit in zip(old.units, new.units, strict=True)]  # fmt: skip
        assert all(kept)
    left = 0
    for was, now in zip(reversed(before), reversed(after), strict=True):
        pieces = [
            (was.kept, now.kept),
            *((u.nbytes * u.there, v.nbytes * v.there) for u, v in zip(was.units, now.units, strict=True)),
        ]
        for had, has in reversed(pieces):
            assert has in (had, 0), "nothing comes, and nothing leaves in part"
            if left:
                assert has == 0, "nothing leaves before what goes earlier"
            if had and not has:
                if not left:
                    assert there(after) + had > room, "the last to leave had to"
                left += had
    told = neighbours(before, after)
    assert sum(each.leaves_bytes for each in told) == left
    assert sum(each.stays_bytes for each in told) == there(after)


def test_who_was_used_longest_ago_leaves_first_and_its_loras_before_its_weights() -> None:
    units = (HeldUnit(10, there=True), HeldUnit(10, there=True))
    old, young = Holding("old", 3, units), Holding("young", 3, units)
    (first, second) = give_way([old, young], 45, 0)
    assert (first.kept, first.device_bytes, second) == (0, 20, young)
    (first, second) = give_way([old, young], 33, 0)
    assert [unit.there for unit in first.units] == [False, True]
    assert second == young
    (first, second) = give_way([old, young], 12, 0)
    assert (first.device_bytes, second.kept, second.device_bytes) == (0, 0, 10)


def test_copies_on_the_host_are_of_one_budget() -> None:
    away, both, here = HeldUnit(10, there=False, copied=True), HeldUnit(10, there=True, copied=True), HeldUnit(10, True)
    model = Holding("model", 0, (here, here, both, away))
    # With room for them, what leaves is copied; it comes back from its file otherwise.
    assert [unit.copied for unit in give_way([model], 10, 30)[0].units] == [True, False, True, True]
    # The copy of what lies on the device goes before that of what has left.
    assert [unit.copied for unit in give_way([model], 30, 10)[0].units] == [False, False, False, True]
    assert [unit.copied for unit in give_way([model], 30, 0)[0].units] == [False] * 4
