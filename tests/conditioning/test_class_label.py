import pytest
import torch

from latentdiff.conditioning.class_label import ClassIndex, ClassTokens, ClassVector
from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.types import Batch, Conditioning

CLASSES, WIDTH = 5, 3


def batch(*labels: int) -> Batch:
    return Batch(keys=[str(i) for i in range(len(labels))], label=torch.tensor(labels))


def draws(count: int, number: int = 0) -> Draws:
    return Draws(seed=3, number=number, start=0, count=count, total=count)


def make(kind, **options):
    torch.manual_seed(0)
    return kind(classes=CLASSES, **({} if kind is ClassIndex else {"width": WIDTH}), **options)


def rows_of(kind, module, cond: Conditioning) -> list[int]:
    """Which row of the table each sample has."""
    if kind is ClassIndex:
        return cond.label.tolist()
    given = cond.tokens[:, 0] if kind is ClassTokens else cond.vector
    return (given[:, None] == module.table.weight).all(-1).int().argmax(1).tolist()


each = pytest.mark.parametrize("kind", [ClassTokens, ClassVector, ClassIndex])


@each
@torch.no_grad()
def test_a_label_is_its_row_and_no_label_the_last(kind):
    module, given = make(kind), batch(0, 4, -1, 2)
    assert rows_of(kind, module, module(given)) == [0, 4, 5, 2]
    assert rows_of(kind, module, module.null(given)) == [5, 5, 5, 5]
    assert rows_of(kind, module, module.alone(given)["class"]) == [0, 4, 5, 2]
    assert {f for f, v in vars(module(given)).items() if v is not None} == {
        {ClassTokens: "tokens", ClassVector: "vector", ClassIndex: "label"}[kind]
    }


@torch.no_grad()
def test_shapes():
    assert make(ClassTokens)(batch(0, 1)).tokens.shape == (2, 1, WIDTH)
    assert make(ClassVector)(batch(0, 1)).vector.shape == (2, WIDTH)
    assert make(ClassIndex)(batch(0, 1)).label.dtype == torch.int64
    assert make(ClassTokens).table.weight.shape == (CLASSES + 1, WIDTH)


@each
@torch.no_grad()
def test_dropped_samples_and_no_others_have_the_null_row(kind):
    module, labels = make(kind, drop=0.4), [i % CLASSES for i in range(64)]
    gone = module.dropped(draws(64))["class"].tolist()
    rows = rows_of(kind, module, module(batch(*labels), None, draws(64)))
    assert rows == [CLASSES if lost else label for label, lost in zip(labels, gone)]
    assert 10 < sum(gone) < 42
    assert rows_of(kind, module, module(batch(*labels))) == labels


@each
def test_realised_drop_rate(kind):
    module, p = make(kind, drop=0.1), 0.1
    share = torch.stack([module.dropped(draws(200, n))["class"] for n in range(50)]).float().mean().item()
    assert abs(share - p) < 4 * (p * (1 - p) / 10_000) ** 0.5


@each
@pytest.mark.parametrize("label", [CLASSES, CLASSES + 1])
def test_a_label_that_is_too_large_never_means_no_class(kind, label):
    """The data is checked; what slips through is refused by a table of classes + 1 rows."""
    module, own_table = make(kind), torch.nn.Embedding(CLASSES + 1, 1)
    with pytest.raises(IndexError):
        own_table(module(batch(0, label)).label)


def test_gradients_reach_the_rows_that_were_read():
    module = make(ClassTokens)
    module(batch(1, -1)).tokens.sum().backward()
    assert module.table.weight.grad.sum(1).tolist() == [0, WIDTH, 0, 0, 0, WIDTH]


@each
def test_bad_input(kind):
    with pytest.raises(InputError, match="the batch has none: use data with labels"):
        make(kind)(Batch(keys=["a"]))
    with pytest.raises(InputError, match="probability from 0 to 1"):
        make(kind, drop=1.5)
    with pytest.raises(InputError, match="at least 1, got 0"):
        kind(classes=0, **({} if kind is ClassIndex else {"width": WIDTH}))
