from dalle_mini.errors import UserError


def test_a_mistake_is_told_in_one_line_whatever_the_names_hold():
    error = UserError("a\nerror: b: not readable (first line\r\n  second)\n")
    assert str(error) == "a error: b: not readable (first line second)"
