import pytest

from support import notebook


def test_a_sentence_shows_its_values_as_text_and_as_markdown(capsys):
    notebook.say("Chance is **{chance:.2f}**, {who}.", chance=5 / 19, who="by hand")
    assert capsys.readouterr().out == "Chance is **0.26**, by hand.\n"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_missing_number_is_no_finding(value):
    with pytest.raises(ValueError, match="chance is"):
        notebook.say("{chance:.2f}", chance=value)


def test_every_value_is_said_and_every_name_has_a_value():
    with pytest.raises(ValueError, match="does not say b"):
        notebook.say("{a}", a=1, b=2)
    with pytest.raises(KeyError, match="a"):
        notebook.say("{a}")
