import sys

import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from latentdiff.config.errors import InputError
from latentdiff.models import hub


class Loader:
    """Stands for ``from_pretrained``: notes its calls, answers where ``has`` says so."""

    def __init__(self, *, local=False, online=False):
        self.has = {True: local, False: online}
        self.calls = []

    def __call__(self, name, *, local_files_only):
        self.calls.append((name, local_files_only))
        if not self.has[local_files_only]:
            raise OSError("no file named config.json")
        return "the model"


@pytest.fixture
def answer(monkeypatch):
    """Sets what asking the hub comes to, and notes who was asked for."""
    asked = []

    def set_answer(error=None):
        def model_info(self, name, timeout):
            asked.append((name, timeout))
            if error is not None:
                raise error

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
        return asked

    return set_answer


def test_a_folder_is_read_without_the_hub(tmp_path, answer):
    asked, loader = answer(), Loader(local=True)
    assert hub.load_pretrained(loader, str(tmp_path)) == "the model"
    assert loader.calls == [(str(tmp_path), True)]
    assert not asked


def test_the_cache_comes_before_the_hub(answer):
    asked, loader = answer(), Loader(local=True, online=True)
    assert hub.load_pretrained(loader, "some/model") == "the model"
    assert loader.calls == [("some/model", True)]
    assert not asked


def test_what_is_not_cached_is_downloaded_where_the_hub_answers(answer):
    asked, loader = answer(), Loader(online=True)
    assert hub.load_pretrained(loader, "some/model") == "the model"
    assert loader.calls == [("some/model", True), ("some/model", False)]
    assert asked == [("some/model", hub.PROBE_SECONDS)]


def test_without_a_network_no_download_is_tried(answer):
    answer(ConnectionError("no route to host"))
    loader = Loader(online=True)
    with pytest.raises(InputError, match=r"hub cannot be reached \(no route to host\).*hf download some/model"):
        hub.load_pretrained(loader, "some/model")
    assert loader.calls == [("some/model", True)]


def test_a_model_unknown_to_the_hub_is_an_input_error(answer):
    answer(RepositoryNotFoundError.__new__(RepositoryNotFoundError))  # its arguments differ between versions
    with pytest.raises(InputError, match="has no model 'some/model'"):
        hub.load_pretrained(Loader(), "some/model")


def test_what_cannot_be_read_is_an_input_error(tmp_path, answer):
    answer()
    with pytest.raises(InputError, match=r"could not be loaded .*no file named config\.json.*\.safetensors"):
        hub.load_pretrained(Loader(), str(tmp_path))
    with pytest.raises(InputError, match="'some/model' could not be loaded"):
        hub.load_pretrained(Loader(), "some/model")
    with pytest.raises(InputError, match="neither a folder on this machine nor a model id"):
        hub.load_pretrained(Loader(local=True), str(tmp_path / "nowhere"))


def test_within_reach_is_what_is_cached_or_answers(tmp_path, monkeypatch, answer):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    asked = answer()
    hub.check_within_reach("some/model")
    assert len(asked) == 1
    answer(ConnectionError("no route to host"))
    with pytest.raises(InputError, match="cannot be reached"):
        hub.check_within_reach("some/model")
    (tmp_path / "models--some--model").mkdir()
    hub.check_within_reach("some/model")


def test_transformers_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'latentdiff\[hf\]'"):
        hub.transformers_module()
