from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from latentdiff.app.evaluation.subject import made_conditions
from latentdiff.config.errors import InputError


def model(*, captions: bool = False, labels: bool = False, **conditioner: object) -> SimpleNamespace:
    config = OmegaConf.create({"conditioner": conditioner})
    return SimpleNamespace(config=config, reads_captions=captions, reads_labels=labels)


def test_classes_are_the_model_s_own() -> None:
    assert made_conditions(model(labels=True, classes=5)).classes == 5
    assert made_conditions(model(classes=5)).classes is None


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (model(captions=True), "reads captions"),
        (model(conditions={"mask": {}}), "reads mask"),
        (model(labels=True), "how many classes"),
    ],
)
def test_what_cannot_be_made_up_is_refused(made: SimpleNamespace, said: str) -> None:
    with pytest.raises(InputError, match=rf"conditions=made: .*{said}"):
        made_conditions(made)
