import json
import os
import resource
import signal

import pytest
import torch

from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError

COUNTERS = {"batches_seen": 7, "images_seen": 56}


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "w": torch.randn(3, 4, generator=generator),
        "b": torch.randn(4, generator=generator).bfloat16(),
        "n": torch.tensor(5),
    }


def write(path, **changes):
    arguments = {"kind": "diffusion", "model": weights(), "config": "seed: 1\n", "counters": COUNTERS} | changes
    return store.save(path, **arguments)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_everything_comes_back(tmp_path):
    state = {
        "optimizers": [{"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "lr": 1e-4}],
        "epoch": 2,
        "betas": (0.9, 0.99),
    }
    saved = write(
        tmp_path / "last",
        ema=weights(1),
        train_state=state,
        world_size=2,
        first_stage={"path": "ae", "hash": "ab"},
        latent={"channels": 4, "factor": 8},
        extra={"psnr": 21.5},
    )
    manifest = store.verify(tmp_path / "last")
    assert manifest == saved == store.read_manifest(tmp_path / "last", expect_kind="diffusion")
    assert (manifest.kind, manifest.counters, manifest.world_size) == ("diffusion", COUNTERS, 2)
    assert (manifest.first_stage["hash"], manifest.latent["factor"], manifest.extra) == ("ab", 8, {"psnr": 21.5})
    assert manifest.versions["torch"] == torch.__version__
    assert same(store.load_weights(tmp_path / "last"), weights())
    assert same(store.load_weights(tmp_path / "last", "ema"), weights(1))
    assert store.load_config(tmp_path / "last") == "seed: 1\n"
    loaded = store.load_train_state(tmp_path / "last")
    assert torch.equal(loaded["optimizers"][0]["state"][0]["exp_avg"], torch.ones(2))
    assert (loaded["epoch"], loaded["betas"]) == (2, (0.9, 0.99))
    assert sorted(os.listdir(tmp_path)) == ["last"]


def test_tied_and_strided_tensors_are_stored_by_value(tmp_path):
    table = torch.arange(12.0).view(3, 4)
    write(tmp_path / "c", model={"in": table, "out": table, "t": table.t(), "row": table[1]})
    loaded = store.load_weights(tmp_path / "c")
    assert torch.equal(loaded["in"], table)
    assert torch.equal(loaded["out"], table)
    assert torch.equal(loaded["t"], table.t())
    assert torch.equal(loaded["row"], table[1])


def test_digest_is_of_the_weights_alone(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", config="seed: 2\n", extra={"x": 1})
    write(tmp_path / "c", model=weights(9))
    write(tmp_path / "d", ema=weights(1))
    digests = [store.digest(tmp_path / name) for name in "abcd"]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_replaces_what_stood_there(tmp_path):
    write(tmp_path / "last", ema=weights(1))
    write(tmp_path / "last", model=weights(2))
    assert same(store.load_weights(tmp_path / "last"), weights(2))
    assert not (tmp_path / "last" / "ema.safetensors").exists()
    assert os.listdir(tmp_path) == ["last"]


@pytest.mark.parametrize(
    ("module", "broken"), [(store, "save_file"), (store.durable, "flush"), (store.durable, "_move_in")]
)
def test_failed_save_leaves_the_old_checkpoint_and_no_litter(tmp_path, monkeypatch, module, broken):
    write(tmp_path / "last")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, broken, full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "last", model=weights(2))
    store.verify(tmp_path / "last")
    assert same(store.load_weights(tmp_path / "last"), weights())
    assert os.listdir(tmp_path) == ["last"]


def test_kill_between_the_two_renames_loses_nothing(tmp_path):
    write(tmp_path / "last")
    os.rename(tmp_path / "last", tmp_path / ".old-last-01234567")
    (tmp_path / ".tmp-last-89abcdef").mkdir()
    assert same(store.load_weights(store.resolve(tmp_path / "last")), weights())
    write(tmp_path / "last", model=weights(3))
    assert same(store.load_weights(tmp_path / "last"), weights(3))
    assert os.listdir(tmp_path) == ["last"]


def test_refuses_training_state_that_would_execute(tmp_path):
    class Payload:
        pass

    with pytest.raises(TypeError, match=r"train_state\['a'\]\[1\] is a .*Payload"):
        write(tmp_path / "last", train_state={"a": [1, Payload()]})
    assert not (tmp_path / "last").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "train_state.pt", "config.yaml"])
def test_verify_finds_every_flipped_byte_and_truncation(tmp_path, name):
    write(tmp_path / "c", train_state={"epoch": 1})
    file = tmp_path / "c" / name
    whole = file.read_bytes()
    for offset in range(0, len(whole), max(1, len(whole) // 7)):
        file.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        with pytest.raises(InputError, match=f"{name}: sha256"):
            store.verify(tmp_path / "c")
        file.write_bytes(whole[:offset])
        with pytest.raises(InputError, match=f"{name}: {len(whole)} bytes expected, {offset} found"):
            store.verify(tmp_path / "c")
    file.unlink()
    with pytest.raises(InputError, match=f"{name}: missing"):
        store.verify(tmp_path / "c")
    file.write_bytes(whole)
    store.verify(tmp_path / "c")


def test_loading_names_the_truncated_file(tmp_path):
    write(tmp_path / "c", train_state={"epoch": 1})
    for name, load in (("model.safetensors", store.load_weights), ("train_state.pt", store.load_train_state)):
        file = tmp_path / "c" / name
        file.write_bytes(file.read_bytes()[:-3])
        with pytest.raises(InputError, match=f"{name}' is truncated .* bytes expected"):
            load(tmp_path / "c")


def test_damaged_contents_of_the_right_size_are_input_errors(tmp_path):
    write(tmp_path / "c", train_state={"epoch": 1})
    for name, load in (("model.safetensors", store.load_weights), ("train_state.pt", store.load_train_state)):
        file = tmp_path / "c" / name
        file.write_bytes(b"\xff" * file.stat().st_size)
        with pytest.raises(InputError, match=f"{name}' is damaged"):
            load(tmp_path / "c")


def test_manifest_faults(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        store.read_manifest(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        store.read_manifest(tmp_path)
    write(tmp_path / "c")
    file = tmp_path / "c" / store.MANIFEST
    with pytest.raises(
        InputError, match=r"kind diffusion \(stage two\), one of kind autoencoder \(stage one\) is wanted"
    ):
        store.read_manifest(tmp_path / "c", expect_kind="autoencoder")
    with pytest.raises(InputError, match="no 'ema' weights"):
        store.load_weights(tmp_path / "c", "ema")
    with pytest.raises(InputError, match="cannot be resumed"):
        store.load_train_state(tmp_path / "c")
    raw = json.loads(file.read_text())
    for text, message in (
        ("{", "not readable JSON"),
        ("[]", "has format list"),
        (json.dumps(raw | {"format": 99}), "has format 99"),
        (json.dumps({k: v for k, v in raw.items() if k != "kind"}), "unknown entries: kind"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            store.read_manifest(tmp_path / "c")


def test_every_changed_byte_of_a_manifest_is_found(tmp_path):
    write(tmp_path / "c", first_stage={"path": "an é"}, extra={"psnr": 21.5})
    file = tmp_path / "c" / store.MANIFEST
    whole = file.read_bytes()
    same_to_json = {ord("\n"): ord("\r"), ord(" "): ord("\n")}
    for place, byte in enumerate(whole):
        other = same_to_json.get(byte, byte ^ 1)
        file.write_bytes(whole[:place] + bytes([other]) + whole[place + 1 :])
        with pytest.raises(InputError, match=r"damaged|reads format 2"):
            store.read_manifest(tmp_path / "c")
    file.write_bytes(whole)
    store.verify(tmp_path / "c")


def test_resolve_takes_an_older_one_where_last_is_missing(tmp_path):
    for number in (2, 4):
        write(tmp_path / f"batch-{number:08d}")
    assert store.resolve(tmp_path) == store.resolve(tmp_path / "last") == tmp_path / "batch-00000004"


def test_resolve_takes_checkpoint_folder_and_run_directory(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    write(folder / "last")
    assert store.resolve(folder / "last") == folder / "last"
    assert store.resolve(folder) == store.resolve(tmp_path / "run") == folder / "last"
    write(folder / "best")
    assert store.resolve(tmp_path / "run") == folder / "best"
    assert store.resolve(tmp_path / "run", prefer=["last"]) == folder / "last"


def test_resolve_names_what_is_near(tmp_path):
    write(tmp_path / "demo" / "ldm" / "checkpoints" / "last")
    with pytest.raises(InputError, match=r"there is no '.*/demo/ldmm'; did you mean '.*/demo/ldm'\?$"):
        store.resolve(tmp_path / "demo" / "ldmm")
    with pytest.raises(InputError, match=r"there is no '.*/dem'; did you mean '.*/demo'\?$"):
        store.resolve(tmp_path / "dem" / "ldm")
    with pytest.raises(InputError, match=r"it holds runs, name one of them: '.*/demo/ldm'$"):
        store.resolve(tmp_path / "demo")
    with pytest.raises(InputError, match=r"there is no '.*/other'$"):
        store.resolve(tmp_path / "other")


def test_resolve_lists_what_it_looked_for(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match=r"no checkpoint found.*checkpoints/best/manifest\.json.*checkpoints/last"):
        store.resolve(tmp_path / "run")
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(InputError, match="is a file, a checkpoint is a directory"):
        store.resolve(tmp_path / "model.ckpt")


def test_unknown_kind_and_counters_are_refused(tmp_path):
    with pytest.raises(ValueError, match="kind must be one of"):
        write(tmp_path / "c", kind="vae")
    with pytest.raises(ValueError, match="counters must be"):
        write(tmp_path / "c", counters={"steps": 1})


@pytest.mark.parametrize("room", [0, 100, 10_000])
def test_a_write_that_the_system_refuses_is_an_os_error(tmp_path, room):
    """torch says RuntimeError then."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        try:
            store.write_values({"a": torch.zeros(100_000)}, tmp_path / "values.pt")
        except OSError:
            os._exit(3)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
