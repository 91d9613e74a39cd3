from latentdiff.evaluation.made_conditions import MadeConditions


def test_every_class_as_often_whatever_the_chunks() -> None:
    made = MadeConditions(classes=3)
    labels = [int(label) for chunk in (range(0, 4), range(4, 9)) for label in made(chunk).label]
    assert labels == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert made(range(4, 6)).keys == ["image 4", "image 5"]
    assert made.describe()["rule"] == "image i: class i mod 3"


def test_no_class_where_none_is_read() -> None:
    made = MadeConditions(classes=None)
    assert made(range(2)).label is None
    assert made.describe()["rule"] == "no condition"
