import os
import resource
import signal
from pathlib import Path

import pytest

from latentdiff import durable


def test_text_is_appended_whole_or_not_at_all(tmp_path: Path) -> None:
    """A limit on the size of files, like a full disk, takes a part of a write and refuses the rest."""
    file = tmp_path / "lines"
    durable.append(file, "first\n")
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            durable.append(file, "x" * 200)
        except OSError:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert file.read_text() == "first\n"
    durable.append(file, "é\n")
    assert file.read_text(encoding="utf-8") == "first\né\n"


def test_a_removed_directory_leaves_its_place_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("x")
    seen = []
    monkeypatch.setattr(durable, "passed", lambda point: seen.append((point, (tmp_path / "old").exists())))
    durable.remove(tmp_path / "old")
    assert seen == [("pruning", False)]
    assert os.listdir(tmp_path) == []


def test_what_the_check_refuses_is_not_moved_in(tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        raise OSError(5, f"{(folder / 'file').read_text()} is wrong")

    with pytest.raises(OSError, match="new is wrong"), durable.new_directory(tmp_path / "a", check=refuse) as staged:
        (staged / "file").write_text("new")
    assert os.listdir(tmp_path) == []


def test_the_old_directory_can_be_kept(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with durable.new_directory(tmp_path / "a", keep_as=tmp_path / "b") as staged:
            (staged / "file").write_text(text)
    assert [(tmp_path / name / "file").read_text() for name in ("a", "b")] == ["new", "old"]
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_files_have_the_usual_rights(tmp_path: Path, umask: None) -> None:
    """Whatever wrote them: safetensors makes files that their owner alone may read."""
    with durable.new_file(tmp_path / "alone") as staged:
        staged.write_text("x")
        staged.chmod(0o600)
    with durable.new_directory(tmp_path / "folder") as staged:
        (staged / "inside").write_text("x")
        (staged / "inside").chmod(0o600)
    for file in ("alone", "folder/inside"):
        assert (tmp_path / file).stat().st_mode & 0o777 == 0o640


def test_files_of_killed_processes_are_cleared_too(tmp_path: Path) -> None:
    left = (".tmp-weights-01234567", ".tmp-weights-89abcdef", ".tmpAb3dE6")
    for name in (*left, "weights"):
        (tmp_path / name).write_text("x")
    durable.tidy(tmp_path, "other")
    assert sorted(os.listdir(tmp_path)) == [*left, "weights"]
    durable.tidy(tmp_path)
    assert os.listdir(tmp_path) == ["weights"]
