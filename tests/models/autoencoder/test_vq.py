from __future__ import annotations

import copy
import threading
from types import SimpleNamespace

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.models.autoencoder.bottlenecks import codes, vq
from latentdiff.models.autoencoder.bottlenecks.vq import VQ


def quantiser(entries=16, channels=3, spread=1.0, **options):
    """With entries scattered like the latents of ``draw``."""
    module = VQ(entries=entries, channels=channels, **options)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        module.embedding.weight.copy_(spread * torch.randn(entries, channels, generator=generator))
    return module


def draws(count, *, start=0, total=None, number=0):
    return Draws(seed=3, number=number, start=start, count=count, total=count if total is None else total)


def test_every_vector_becomes_its_nearest_entry_to_the_bit(draw, monkeypatch):
    module, z = quantiser(), draw(2, 3, 5, 4)
    vectors = z.permute(0, 2, 3, 1)
    nearest = (vectors[..., None, :] - module.embedding.weight).square().sum(-1).argmin(-1)
    assert module.indices(z).equal(nearest)
    expected = module.embedding.weight[nearest].permute(0, 3, 1, 2)
    assert module(z, torch.zeros(())).z.equal(expected)
    assert module.for_decoder(z).equal(expected)
    assert module.lookup(nearest).equal(expected)
    assert module.for_decoder(expected).equal(expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert module.indices(z).equal(nearest)
    monkeypatch.setattr(vq, "SCORES_AT_ONCE", 50)  # in parts of three vectors
    assert module.indices(z).equal(nearest)


def test_the_encoder_gets_the_decoder_s_gradient(draw):
    module, z = quantiser(), draw(2, 3, 4, 4).requires_grad_()
    quantised = module(z, torch.zeros(())).z
    (draw(2, 3, 4, 4, seed=1) * quantised + quantised**3).sum().backward()
    at_quantised = draw(2, 3, 4, 4, seed=1) + 3 * quantised.detach() ** 2
    assert z.grad.equal(at_quantised)
    assert module.embedding.weight.grad is None


def test_the_penalty_pulls_entries_fully_and_the_encoder_by_the_commitment(draw):
    module, z = quantiser(commitment=0.1), draw(2, 3, 4, 4).requires_grad_()
    latent = module(z, torch.zeros(()))
    difference = (z - latent.z).detach()
    torch.testing.assert_close(latent.penalty, 1.1 * difference.square().mean((1, 2, 3)))
    torch.testing.assert_close(latent.logs["codebook"], difference.square().mean())
    latent.penalty.sum().backward()
    torch.testing.assert_close(z.grad, 0.1 * 2 * difference / (3 * 4 * 4))
    at_entries = torch.zeros(16, 3).index_add(
        0, module.indices(z).flatten(), -2 * difference.permute(0, 2, 3, 1).reshape(-1, 3) / (3 * 4 * 4)
    )
    torch.testing.assert_close(module.embedding.weight.grad, at_entries)


def test_stage_two_s_latents_are_not_quantised_and_certain(draw):
    module, z = quantiser(), draw(2, 3, 4, 4)
    posterior = module.posterior(z.bfloat16())
    assert posterior.mean.equal(z.bfloat16().float())
    assert not posterior.std.any()
    assert module.posterior(z.double()).mean.dtype == torch.float64
    assert module(z, torch.zeros(())).posterior.mean.equal(z)


def test_averages_take_one_step_of_the_paper_s_equations(draw):
    module, z = quantiser(entries=4, ema_decay=0.9), draw(2, 3, 5, 4)
    before, indices, vectors = module.embedding.weight.clone(), module.indices(z), z.permute(0, 2, 3, 1)
    counts = torch.stack([0.9 + 0.1 * (indices == i).sum() for i in range(4)])
    sums = torch.stack([0.9 * before[i] + 0.1 * vectors[indices == i].sum(0) for i in range(4)])
    module(z, torch.zeros(()))
    logs = module.after_batch()
    torch.testing.assert_close(module.counts, counts)
    torch.testing.assert_close(module.embedding.weight, sums / counts[:, None], rtol=1e-4, atol=1e-5)
    p = torch.bincount(indices.flatten(), minlength=4) / indices.numel()
    torch.testing.assert_close(logs["perplexity"], torch.distributions.Categorical(p).entropy().exp())
    assert logs["usage"] == (p > 0).float().mean()


def test_averages_converge_to_the_centres_of_k_means(draw):
    """A toy mixture; Lloyd's algorithm from the same start is the oracle."""
    centres = 4 * draw(8, 2, seed=5)
    z = (centres[torch.arange(512) % 8] + 0.3 * draw(512, 2)).view(8, 64, 2).transpose(1, 2).unflatten(2, (8, 8))
    points = z.permute(0, 2, 3, 1).reshape(-1, 2)
    module = VQ(entries=8, channels=2, ema_decay=0.8)
    module.embedding.weight.copy_(centres + 0.5 * draw(8, 2, seed=6))
    lloyd = module.embedding.weight.clone()
    for _ in range(50):
        nearest = torch.cdist(points, lloyd).argmin(1)
        lloyd = torch.stack([points[nearest == i].mean(0) for i in range(8)])
        module(z, torch.zeros(()))
        module.after_batch()
    torch.testing.assert_close(module.embedding.weight, lloyd, atol=1e-3, rtol=1e-3)
    assert (module.embedding.weight - centres).norm(dim=1).max() < 0.2


@pytest.mark.parametrize("ema_decay", [None, 0.8])
def test_no_entry_stays_dead_with_restarts(draw, ema_decay):
    usage, perplexity = {}, {}
    for restart_after in (None, 2):
        torch.manual_seed(0)
        module = VQ(entries=32, channels=2, ema_decay=ema_decay, restart_after=restart_after)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.02) if ema_decay is None else None
        for number in range(40):
            latent = module(5 + draw(4, 2, 16, 16, seed=number), torch.zeros(()))
            if optimizer is not None:
                optimizer.zero_grad()
                latent.penalty.mean().backward()
                optimizer.step()
            logs = module.after_batch(draws(4, number=number))
        usage[restart_after], perplexity[restart_after] = logs["usage"].item(), logs["perplexity"].item()
    assert usage[None] < 0.2
    assert usage[2] == 1.0
    assert perplexity[2] > 20 > perplexity[None]
    assert logs["restarted"] == 0
    assert not module.idle.any()


def in_ranks(monkeypatch, work, ranks=2):
    """work(rank) in one thread per rank, with the collective that they share."""
    barrier, shared = threading.Barrier(ranks), [None] * ranks
    local = threading.local()

    def all_reduce(x):
        shared[local.rank] = x.clone()
        barrier.wait(10)
        total = sum(shared[1:], start=shared[0])
        barrier.wait(10)
        x.copy_(total)

    fake = SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True, all_reduce=all_reduce)
    monkeypatch.setattr(codes, "dist", fake)
    results, faults = [None] * ranks, []

    def body(rank):
        local.rank = rank
        try:
            results[rank] = work(rank)
        except BaseException as fault:
            faults.append(fault)
            barrier.abort()

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    monkeypatch.undo()
    return results


def run(module, batches, parts, rank=None):
    """Trains ``module`` by its averages on the rank's part of every batch, given as slices for micro-batches."""
    restarted = 0.0
    for number, z in enumerate(batches):
        for part in parts:
            module(z[part], torch.zeros(()))
        start, stop = parts[0].start, parts[-1].stop
        logs = module.after_batch(draws(stop - start, start=start, total=len(z), number=number))
        restarted += logs["restarted"].item()
    return module, logs, restarted


def test_ranks_and_micro_batches_change_nothing(draw, monkeypatch):
    fresh = quantiser(spread=0.1, ema_decay=0.9, restart_after=2).double()
    batches = [draw(8, 3, 4, 4, seed=i).double() for i in range(10)]
    whole, logs, restarted = run(copy.deepcopy(fresh), batches, [slice(0, 8)])
    assert restarted > 0
    split = [[slice(0, 3)], [slice(3, 4), slice(4, 8)]]
    for module, own, again in in_ranks(monkeypatch, lambda rank: run(copy.deepcopy(fresh), batches, split[rank])):
        for name, tensor in whole.state_dict().items():
            torch.testing.assert_close(module.state_dict()[name], tensor, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(own, logs)
        assert again == restarted


def test_restarts_depend_on_seed_and_batch_alone_and_take_latents_of_the_batch(draw):
    z = draw(4, 3, 4, 4)
    weights = []
    for number in (0, 0, 1):
        module = quantiser(spread=0.0, restart_after=1)
        module(z, torch.zeros(()))
        assert module.after_batch(draws(4, number=number))["restarted"] == 15
        weights.append(module.embedding.weight.detach()[1:])  # all were equal, so the first was used
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])
    latents = z.permute(0, 2, 3, 1).reshape(-1, 3)
    own = torch.cdist(weights[0], latents).argmin(1)
    assert latents[own].equal(weights[0])
    assert len(own.unique()) == 15


def test_restarting_needs_the_draws_of_the_images_seen(draw):
    for given in (None, draws(3)):
        module = quantiser(restart_after=1)
        module(draw(2, 3, 1, 1), torch.zeros(()))
        with pytest.raises(ValueError, match="the draws of the 2 images seen"):
            module.after_batch(given)


def test_evaluation_leaves_no_trace(draw):
    module = quantiser(ema_decay=0.9, restart_after=1).eval()
    logs = module(draw(2, 3, 4, 4), torch.zeros(())).logs
    assert set(logs) == {"codebook", "perplexity", "usage"}
    with pytest.raises(ValueError, match="training mode"):
        module.after_batch(draws(2))


def test_names_are_the_published_ones_and_the_rest_is_told():
    learned, averaged = quantiser(), quantiser(ema_decay=0.9, restart_after=3)
    assert set(learned.state_dict()) == {"embedding.weight"} == {name for name, _ in learned.named_parameters()}
    assert learned.training_state == ()
    assert not list(averaged.parameters())
    assert set(averaged.state_dict()) - {"embedding.weight"} == set(averaged.training_state) == {"counts", "idle"}
    start = VQ(entries=50, channels=2).embedding.weight
    assert 0.015 < start.abs().max() <= 1 / 50


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.tensor([[[0, 16]]]), "indices 0 to 15, got 0 to 16"),
        (torch.tensor([[[-1]]]), "got -1 to -1"),
        (torch.tensor([[[0.5]]]), r"must be integers, got torch\.float32"),
    ],
)
def test_indices_out_of_range_are_refused(indices, message):
    with pytest.raises(InputError, match=message):
        quantiser().lookup(indices)


def test_latents_of_another_width_are_refused(draw):
    with pytest.raises(InputError, match=r"shape \(B, 3, h, w\), got \(1, 4, 2, 2\)"):
        quantiser().indices(draw(1, 4, 2, 2))


def test_settings_out_of_range_are_refused_all_at_once():
    with pytest.raises(
        InputError, match=r"entries must be at least 1, got 0; .*ema_decay must be in \[0, 1\), .* 1\.0"
    ):
        VQ(entries=0, channels=1, ema_decay=1.0)
    with pytest.raises(InputError, match="restart_after must be at least 1, or null, got 0"):
        VQ(entries=2, channels=1, restart_after=0)
