import hashlib

import pytest

from latentdiff.config.errors import InputError
from latentdiff.evaluation.prompts import PromptFile


def written(tmp_path, content):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    ["a cat\nein Hündchen\nc\u2028d\n", "a cat\r\nein Hündchen\r\nc\u2028d", "\ufeffa cat\nein Hündchen\nc\u2028d"],
)
def test_line_i_is_the_caption_of_image_i(tmp_path, content):
    prompts = PromptFile(written(tmp_path, content.encode()))
    assert len(prompts) == 3
    batch = prompts(range(1, 3))
    assert batch.caption == ["ein Hündchen", "c\u2028d"]
    assert batch.keys == ["line 2", "line 3"]


def test_the_card_has_the_sha256_of_the_file(tmp_path):
    about = PromptFile(written(tmp_path, b"a\nb\n")).describe()
    assert about["sha256"] == hashlib.sha256(b"a\nb\n").hexdigest()
    assert about["lines"] == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a\n\nb\n \nc\n", r"2 of 5 lines .* are empty \(line 2, 4\)"),
        (b"a\n\n", r"1 of 2 lines .* are empty \(line 2\)"),
        (b"\n" * 30, "holds no caption"),
        (b"", "holds no caption"),
        (b"caf\xe9\n", "not UTF-8"),
    ],
)
def test_files_at_fault_are_refused(tmp_path, content, said):
    with pytest.raises(InputError, match=said):
        PromptFile(written(tmp_path, content))


def test_a_missing_file_and_too_few_captions_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        PromptFile(tmp_path / "none.txt")
    with pytest.raises(InputError, match="has 2 captions, 3 or more are wanted"):
        PromptFile(written(tmp_path, b"a\nb\n"))(range(3))
