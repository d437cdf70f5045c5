from dalle_mini.weights.bundle import PARTS, SHIPPED, identity
from dalle_mini.weights.editions import EDITIONS, edition_of


def test_an_edition_is_known_by_its_weights():
    assert [edition_of(edition.sha256) for edition in EDITIONS] == [*EDITIONS]
    assert all(set(edition.sha256) == set(PARTS) for edition in EDITIONS)
    first, second = EDITIONS
    assert edition_of({**second.sha256, "clip": first.sha256["clip"]}) is None
    assert edition_of({}) is None


def test_the_second_edition_is_what_ships():
    shipped = {part: identity(SHIPPED / part)["sha256"] for part in PARTS}
    assert edition_of(shipped) == EDITIONS[-1]
