import os
import stat

import pytest

from dalle_mini.runtime.private import Unsafe, make_private


@pytest.fixture
def place(tmp_path):
    """A folder within which all is the user's, whatever the umask of the tests."""
    before = os.umask(0)
    (tmp_path / "home").mkdir(0o700)
    yield tmp_path / "home"
    os.umask(before)


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_folder_and_what_it_lacks_on_the_way_are_the_users_alone(place):
    make_private(place / "a" / "b")
    assert mode(place / "a") == mode(place / "a" / "b") == 0o700


def test_one_that_others_could_read_is_closed_and_keeps_what_it_has(place):
    (place / "a").mkdir(0o755)
    (place / "a" / "program").write_text("ours")
    make_private(place / "a")
    assert mode(place / "a") == 0o700 and (place / "a" / "program").exists()


def test_what_others_may_have_written_is_removed(place):
    (place / "a").mkdir(0o777)
    (place / "a" / "program").write_text("anybody's")
    make_private(place / "a")
    assert mode(place / "a") == 0o700 and os.listdir(place / "a") == []


@pytest.mark.parametrize("modes", [0o777, 0o773])
def test_a_folder_on_the_way_that_others_may_write_to_is_refused(place, modes):
    (place / "shared").mkdir()
    (place / "shared").chmod(modes)
    with pytest.raises(Unsafe, match=f"shared may be written by other users .mode {modes:o}.: chmod go-w"):
        make_private(place / "shared" / "a")
    (place / "shared").chmod(0o1777)  # as /tmp: what is there is safe
    make_private(place / "shared" / "a")


def test_links_on_the_way_are_looked_behind(place):
    (place / "real").mkdir(0o777)
    (place / "real" / "inner").mkdir(0o700)
    (place / "link").symlink_to("real/inner")
    with pytest.raises(Unsafe, match="real may be written"):
        make_private(place / "link" / "a")
    (place / "real").chmod(0o755)
    make_private(place / "link" / "a")
    (place / "loop").symlink_to("loop")
    with pytest.raises((OSError, Unsafe)):
        make_private(place / "loop" / "a")


def test_a_link_in_its_own_place_is_refused(place):
    (place / "other").mkdir(0o700)
    (place / "a").symlink_to(place / "other")
    with pytest.raises(Unsafe, match="a is a link"):
        make_private(place / "a")


@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root cannot give a folder away")
@pytest.mark.parametrize("given", ["a", "a/b"])
def test_what_belongs_to_somebody_else_is_refused(place, given):
    (place / "a" / "b").mkdir(0o700, parents=True)
    (place / "a").chmod(0o700)
    os.chown(place / given, 65534, 65534)
    with pytest.raises(Unsafe, match="belongs to another user"):
        make_private(place / "a" / "b")
