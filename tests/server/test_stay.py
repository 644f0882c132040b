"""How long a worker stays with the model that is loaded while jobs of another one wait."""

from __future__ import annotations

from hwaga.server.stay import LONGEST, MOST, Stay


def taken(stay: Stay, waiting: set[str | None], now: float, turn: str) -> str:
    """The model of the next job, where ``turn`` would be next."""
    model = stay.preferred(waiting, now) or turn
    stay.took(model)
    return model


def test_a_few_jobs_of_the_loaded_model_go_first() -> None:
    stay = Stay()
    assert taken(stay, {"a", "b"}, 0, "a") == "a", "whoever is next, before anything is loaded"
    found = [taken(stay, {"a", "b"}, 1, "b") for _ in range(3 * MOST)]
    assert found == ["a"] * MOST + ["b"] * (2 * MOST)
    # The other model stays as long, where the first one's jobs would be next.
    stay = Stay()
    stay.took("a")
    turns = ["b"] * (MOST + 1) + ["a"] * (MOST + 1)
    assert [taken(stay, {"a", "b"}, 1, turn) for turn in turns] == ["a"] * MOST + ["b"] + ["b"] * MOST + ["a"]


def test_not_for_long() -> None:
    stay = Stay()
    stay.took("a")
    assert taken(stay, {"a", "b"}, 100, "b") == "a"
    assert taken(stay, {"a", "b"}, 99.9 + LONGEST, "b") == "a"
    assert taken(stay, {"a", "b"}, 100 + LONGEST, "b") == "b"


def test_turns_of_the_loaded_model_do_not_begin_it_anew() -> None:
    """A job that is next anyway counts, too: else those of the other model would wait for ever."""
    stay = Stay()
    stay.took("a")
    found = [taken(stay, {"a", "b"}, 1, turn) for turn in "ab" * MOST]
    assert found.index("b") <= MOST + 1


def test_nothing_is_counted_while_nobody_else_waits() -> None:
    stay = Stay()
    stay.took("a")
    for now in range(100):
        assert stay.preferred({"a"}, now) is None
        stay.took("a")
    assert stay.preferred(set(), 100) is None
    assert stay.preferred({"b"}, 100) is None, "there is none of its own"
    assert stay.preferred({"a", "b"}, 100) == "a"
    assert stay.preferred({"a", "b"}, 100 + LONGEST) is None
    assert stay.preferred({"a"}, 200) is None
    assert stay.preferred({"a", None}, 200) == "a", "the wait began anew"
