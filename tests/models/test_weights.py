import pytest
import torch
from torch import nn

from latentdiff.config.errors import InputError
from latentdiff.models.weights import LINE, in_short, load_weights, read_weights, tensors_sha256

ABOUT = {"what": "a net", "remedy": "get another"}


def test_tensors_come_back(tmp_path):
    net = nn.Linear(2, 3)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    other = nn.Linear(2, 3)
    load_weights(other, read_weights(tmp_path / "w.pth", **ABOUT), tmp_path / "w.pth", **ABOUT)
    assert torch.equal(other.weight, net.weight)
    with pytest.raises(InputError, match=r"(?s)does not hold the weights of a net.*bias.*get another"):
        load_weights(nn.Linear(2, 4), net.state_dict(), "w.pth", **ABOUT)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x80\x02}q\x00(", b"PK\x03\x04 and no more"])
def test_damage_is_an_input_error(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"does not hold the weights of a net: it is damaged .*; get another"):
        read_weights(tmp_path / "w.pth", **ABOUT)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"a": torch.zeros(1), "b": 2}])
def test_anything_but_tensors_by_name_is_an_input_error(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match="expected tensors by name; get another"):
        read_weights(tmp_path / "w.pth", **ABOUT)
    with pytest.raises(InputError, match=r"weights of a net '.*none\.pth' not found; get another"):
        read_weights(tmp_path / "none.pth", **ABOUT)


def test_long_messages_are_cut():
    with pytest.raises(RuntimeError) as found:
        nn.Sequential(*[nn.Linear(2, 2) for _ in range(99)]).load_state_dict({})
    short = in_short(found.value)
    assert len(str(found.value)) > 2000
    assert len(short) < 2 * LINE
    assert short.startswith('Error(s) in loading state_dict for Sequential: Missing key(s) in state_dict: "0.weight"')
    assert short.endswith(" ...")
    assert in_short(ValueError("one\n\ttwo")) == "one two"
    assert in_short(ValueError("\n".join("abcdef"))) == "a b c d ..."


def test_hash_is_of_names_types_shapes_and_values():
    def digest(**tensors):
        net = nn.Module()
        for name, tensor in tensors.items():
            net.register_buffer(name, tensor)
        return tensors_sha256(net)

    x = torch.arange(6.0)
    known = digest(a=x, b=torch.tensor(1))
    assert known == digest(b=torch.tensor(1), a=x)
    others = [
        digest(a=x.reshape(2, 3), b=torch.tensor(1)),
        digest(a=x, b=torch.tensor(2)),
        digest(c=x, b=torch.tensor(1)),
    ]
    others += [digest(a=x.double(), b=torch.tensor(1)), digest(a=torch.zeros(0)), digest(a=x.bfloat16())]
    assert len({known, *others}) == 7
    assert digest(a=x.reshape(2, 3).T) == digest(a=x.reshape(2, 3).T.contiguous())
