import pytest

from latentdiff.app.processes import PLACES, check_count, is_first, launched
from latentdiff.app.run import run_dir
from latentdiff.config.errors import InputError

NAMES = {name for names in PLACES for name in names} | {
    *("WORLD_SIZE", "SLURM_NTASKS", "SLURM_STEP_ID", "SLURM_JOB_ID", "SLURM_JOB_NAME")
}


@pytest.fixture
def environment(monkeypatch):
    def become(**variables):
        for name in NAMES | {run_dir.CHILD_RUN_DIR}:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return become


@pytest.mark.parametrize(
    ("variables", "first", "count"),
    [
        ({}, True, None),
        ({"LOCAL_RANK": 1, "WORLD_SIZE": 2}, False, None),  # Lightning's children
        ({"NODE_RANK": 1, "LOCAL_RANK": 0, "WORLD_SIZE": 2}, False, None),
        ({"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 16}, True, 16),  # torchrun
        ({"RANK": 8, "LOCAL_RANK": 0, "WORLD_SIZE": 16}, False, 16),
        ({"SLURM_PROCID": 0, "SLURM_STEP_ID": 0, "SLURM_NTASKS": 4}, True, 4),  # srun
        ({"SLURM_PROCID": 3, "SLURM_STEP_ID": 0, "SLURM_NTASKS": 4}, False, 4),
        ({"SLURM_PROCID": 0, "SLURM_NTASKS": 4}, True, None),  # in the batch script itself
        ({"SLURM_PROCID": 0, "SLURM_NTASKS": 4, "LOCAL_RANK": 1}, False, None),  # Lightning's child there
        ({"SLURM_PROCID": 0, "SLURM_STEP_ID": 0, "SLURM_NTASKS": 1, "SLURM_JOB_NAME": "bash"}, True, None),
        ({"SLURM_PROCID": 0, "SLURM_STEP_ID": 0, "SLURM_NTASKS": 1, "SLURM_JOB_NAME": "train"}, True, 1),
    ],
)
def test_which_process_this_is(environment, variables, first, count):
    environment(**variables)
    assert (is_first(), launched()) == (first, count)


def test_another_number_of_processes_than_asked_for(environment):
    environment(RANK=1, LOCAL_RANK=1, WORLD_SIZE=4)
    check_count(4)
    with pytest.raises(InputError, match=r"started 4 processes, .* ask for 1"):
        check_count(1)


def test_an_interactive_shell_starts_its_processes_itself(environment):
    """As Lightning does there; of several tasks in such a job it would make as many runs."""
    step = {"SLURM_PROCID": 0, "SLURM_STEP_ID": 0, "SLURM_JOB_NAME": "interactive"}
    environment(**step, SLURM_NTASKS=1)
    check_count(8)
    environment(**step, SLURM_NTASKS=8)
    with pytest.raises(InputError, match=r"8 tasks in a job named 'interactive'.*srun --job-name=NAME"):
        check_count(8)


@pytest.mark.parametrize("rank", [0, 1])
def test_under_torchrun_the_folder_must_be_named(environment, tmp_path, rank):
    environment(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2)
    with pytest.raises(InputError, match="give run_dir=DIR"):
        run_dir.prepare(None, outputs=str(tmp_path / "outputs"), name="x")
    assert not (tmp_path / "outputs").exists()
    assert run_dir.prepare(str(tmp_path / "mine"), outputs="", name="x") == tmp_path / "mine"


def test_processes_of_a_slurm_job_agree_on_the_folder(environment, tmp_path):
    found = set()
    for rank in range(3):
        environment(SLURM_PROCID=rank, SLURM_STEP_ID=0, SLURM_NTASKS=3, SLURM_JOB_ID=7)
        found.add(run_dir.prepare(None, outputs=str(tmp_path), name="x"))
    assert len(found) == 1


def test_runs_that_start_in_the_same_second_have_folders_of_their_own(environment, tmp_path, monkeypatch):
    environment()
    monkeypatch.setattr(run_dir.time, "strftime", lambda form: "now")
    folders = [run_dir.prepare(None, outputs=str(tmp_path), name="x") for _ in range(3)]
    assert [folder.name for folder in folders] == ["now", "now_2", "now_3"]
    assert all(folder.is_dir() for folder in folders)
