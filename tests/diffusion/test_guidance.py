from __future__ import annotations

import pytest
import torch
from torch import nn

from latentdiff.config.errors import InputError
from latentdiff.diffusion.coefficients import per_sample
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.grids import Uniform
from latentdiff.diffusion.guidance import (
    Autoguidance,
    ClassifierFree,
    ClassifierGuidance,
    Interval,
    Rescaled,
    Several,
    Unguided,
    check_guidance,
    last_time,
)
from latentdiff.diffusion.parameterization import Epsilon, Sample, V
from latentdiff.diffusion.path import RectifiedFlow, ScaledLinearDDPM
from latentdiff.diffusion.samplers.ddim import DDIM
from latentdiff.types import Conditioning, Conditions

T = torch.tensor([0.2, 0.5, 0.9])
X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
CONDITIONS = Conditions(
    cond=Conditioning(vector=torch.tensor([[1.0], [2.0], [3.0]])), null=Conditioning(vector=torch.zeros(3, 1))
)


class Shift(nn.Module):
    """tanh(x) + the condition; counts its calls."""

    def __init__(self):
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x, t, cond):
        self.batches.append(len(x))
        return torch.tanh(x) + cond.vector.view(-1, 1, 1, 1)


@pytest.fixture
def denoiser() -> Denoiser:
    return Denoiser(backbone=Shift(), path=ScaledLinearDDPM(), parameterization=V())


def test_scale_one_is_unguided_and_skips_the_null_pass(denoiser):
    unguided = Unguided()(denoiser, X, T, CONDITIONS)
    assert torch.equal(ClassifierFree(scale=1.0)(denoiser, X, T, CONDITIONS), unguided)
    assert denoiser.backbone.batches == [3, 3]
    torch.testing.assert_close(Interval(scale=1.0, t_low=0, t_high=1)(denoiser, X, T, CONDITIONS), unguided)


def test_scale_zero_is_the_null_condition_in_one_call(denoiser):
    null = denoiser.denoise(X, T, CONDITIONS.null)
    torch.testing.assert_close(ClassifierFree(scale=0.0)(denoiser, X, T, CONDITIONS), null)
    assert denoiser.backbone.batches == [3, 6]


def test_is_linear_in_the_scale(denoiser):
    at = [ClassifierFree(scale=s)(denoiser, X, T, CONDITIONS) for s in (0.0, 1.0, 5.0)]
    torch.testing.assert_close(at[2], at[0] + 5 * (at[1] - at[0]))


@pytest.mark.parametrize("parameterization", [Epsilon(), V()])
def test_guiding_x0_is_guiding_the_output(parameterization):
    path, backbone = ScaledLinearDDPM(), Shift()
    denoiser = Denoiser(backbone=backbone, path=path, parameterization=parameterization)
    cond, null = (backbone(X, T, c) for c in (CONDITIONS.cond, CONDITIONS.null))
    expected = parameterization.to_x0(null + 3 * (cond - null), X, path, T)
    torch.testing.assert_close(ClassifierFree(scale=3.0)(denoiser, X, T, CONDITIONS), expected, atol=1e-4, rtol=1e-5)


def test_interval_guides_inside_alone(denoiser):
    got = Interval(scale=4.0, t_low=0.4, t_high=0.6)(denoiser, X, T, CONDITIONS)
    unguided, guided = Unguided()(denoiser, X, T, CONDITIONS), ClassifierFree(scale=4.0)(denoiser, X, T, CONDITIONS)
    inside = per_sample(torch.tensor([False, True, False]), X)
    torch.testing.assert_close(got, torch.where(inside, guided, unguided))


def test_interval_refuses_an_empty_one():
    with pytest.raises(InputError, match="t_low"):
        Interval(scale=2.0, t_low=0.6, t_high=0.4)


GUIDED = {
    "free": ClassifierFree(scale=3.0),
    "interval": Interval(scale=3.0, t_low=0, t_high=1),
    "rescaled": Rescaled(scale=3.0, rescale=0.0),
}


@pytest.mark.parametrize("name", GUIDED)
def test_each_is_plain_classifier_free_guidance_at_its_neutral_setting(denoiser, name):
    expected = ClassifierFree(scale=3.0)(denoiser, X, T, CONDITIONS)
    torch.testing.assert_close(GUIDED[name](denoiser, X, T, CONDITIONS), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("made", [Rescaled(scale=1.0, rescale=0.7), Interval(scale=1.0, t_low=0.2, t_high=0.8)])
def test_scale_one_needs_no_null(denoiser, made):
    assert torch.equal(made(denoiser, X, T, CONDITIONS), Unguided()(denoiser, X, T, CONDITIONS))
    assert not made.needs_null


@pytest.mark.parametrize("parameterization", [Epsilon(), V(), Sample()])
def test_rescaled_keeps_the_deviation_of_the_conditional_output(parameterization):
    path, backbone = ScaledLinearDDPM(), Shift()
    denoiser = Denoiser(backbone=backbone, path=path, parameterization=parameterization)
    cond, null = (backbone(X, T, c) * 1.0 for c in (CONDITIONS.cond, CONDITIONS.null))
    guided = null + 5 * (cond - null)
    for rescale in (0.3, 1.0):
        got = Rescaled(scale=5.0, rescale=rescale)(denoiser, X, T, CONDITIONS)
        # what the network would have had to say for this x0
        said = rescale_by_hand(guided, cond, rescale)
        torch.testing.assert_close(got, parameterization.to_x0(said, X, path, T), atol=1e-4, rtol=1e-5)
    deviation = said.flatten(1).std(1)
    torch.testing.assert_close(deviation, cond.flatten(1).std(1))


def rescale_by_hand(guided, cond, rescale):
    rows = [c.std() / g.std() * g for g, c in zip(guided, cond)]
    return rescale * torch.stack(rows) + (1 - rescale) * guided


def test_rescaled_is_diffusers(denoiser):
    diffusers = pytest.importorskip("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    cond, null = (denoiser(X, T, c) for c in (CONDITIONS.cond, CONDITIONS.null))
    theirs = diffusers.rescale_noise_cfg(null + 6 * (cond - null), cond, guidance_rescale=0.7)
    ours = Rescaled(scale=6.0, rescale=0.7)(denoiser, X, T, CONDITIONS)
    torch.testing.assert_close(ours, V().to_x0(theirs, X, denoiser.path, T), atol=1e-6, rtol=1e-6)


def test_rescaled_refuses_what_is_no_share():
    with pytest.raises(InputError, match=r"0 <= rescale <= 1, got 1\.5"):
        Rescaled(scale=2.0, rescale=1.5)


PARTS = {
    "text": Conditioning(vector=torch.tensor([[1.0], [-1.0], [0.5]])),
    "map": Conditioning(vector=torch.tensor([[0.2], [0.3], [0.4]])),
}


def test_several_conditions_have_their_own_scales_in_one_call(denoiser):
    conditions = Conditions(CONDITIONS.cond, CONDITIONS.null, alone=PARTS)
    null, text, layout = (denoiser.denoise(X, T, c) for c in (CONDITIONS.null, *PARTS.values()))
    denoiser.backbone.batches.clear()
    got = Several(scales={"text": 3.0, "map": -0.5})(denoiser, X, T, conditions)
    assert denoiser.backbone.batches == [9]
    torch.testing.assert_close(got, null + 3 * (text - null) - 0.5 * (layout - null), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(Several(scales={"map": 1.0, "text": 0.0})(denoiser, X, T, conditions), layout)
    one = Conditions(PARTS["text"], CONDITIONS.null, alone={"text": PARTS["text"]})
    alone = Several(scales={"text": 3.0})(denoiser, X, T, one)
    torch.testing.assert_close(alone, ClassifierFree(scale=3.0)(denoiser, X, T, one))


def test_several_refuses_a_part_that_the_conditioner_has_not(denoiser):
    with pytest.raises(InputError, match="no part 'txt'; its parts are: text, map"):
        Several(scales={"txt": 3.0})(denoiser, X, T, Conditions(CONDITIONS.cond, CONDITIONS.null, alone=PARTS))
    with pytest.raises(InputError, match="at least one part"):
        Several(scales={})


def test_autoguidance_leads_away_from_the_guide(denoiser):
    class Weak(Shift):
        def forward(self, x, t, cond):
            return 0.5 * super().forward(x, t, cond)

    guide = Denoiser(backbone=Weak(), path=ScaledLinearDDPM(), parameterization=V())
    strong = denoiser.denoise(X, T, CONDITIONS.cond)
    weak = guide.denoise(X, T, CONDITIONS.cond)
    got = Autoguidance(guide=guide, scale=2.5)(denoiser, X, T, CONDITIONS)
    torch.testing.assert_close(got, weak + 2.5 * (strong - weak))
    own = Conditions(CONDITIONS.cond, CONDITIONS.null, guide=CONDITIONS.null)
    torch.testing.assert_close(
        Autoguidance(guide=guide, scale=0.0)(denoiser, X, T, own), guide.denoise(X, T, CONDITIONS.null)
    )
    guide.backbone.batches.clear()
    assert torch.equal(Autoguidance(guide=guide, scale=1.0)(denoiser, X, T, own), strong)
    assert guide.backbone.batches == []
    same = Autoguidance(guide=denoiser, scale=7.0)(denoiser, X, T, CONDITIONS)
    torch.testing.assert_close(same, strong, atol=1e-5, rtol=1e-5)


class Mixture(nn.Module):
    """Data of ``weight`` N(mean, std^2) + (1 - weight) N(-mean, std^2), class 1 and class 0, in one coordinate.

    Its denoiser, and the classifier p(class | x_t), which is exact: logits are log of prior times marginal.
    """

    def __init__(self, path, mean=1.5, std=0.5, weight=0.3):
        super().__init__()
        self.path, self.mean, self.std, self.weight = path, mean, std, weight

    def forward(self, x_t, t):
        alpha, sigma = (c[:, None] for c in self.path.alpha_sigma(t))
        x, variance = x_t.flatten(1), alpha**2 * self.std**2 + sigma**2
        means = self.mean * torch.tensor([[-1.0, 1.0]], dtype=x.dtype)
        prior = torch.tensor([[1 - self.weight, self.weight]], dtype=x.dtype).log()
        return prior - (x - alpha * means) ** 2 / (2 * variance)

    def of_class(self, x_t, t, sign):
        """E[x0 | x_t] of one class alone."""
        alpha, sigma = (per_sample(c, x_t) for c in self.path.alpha_sigma(t))
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return sign * self.mean + gain * (x_t - alpha * sign * self.mean)

    def denoise(self, x_t, t, cond):
        """E[x0 | x_t] of the mixture."""
        p = torch.softmax(self(x_t, t), -1)
        return per_sample(p[:, 0], x_t) * self.of_class(x_t, t, -1) + per_sample(p[:, 1], x_t) * self.of_class(
            x_t, t, 1
        )


PATHS = [RectifiedFlow(), ScaledLinearDDPM()]


def mixture_batch(n=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)
    t = 0.02 + 0.96 * torch.rand(n, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 2, (n,), generator=generator)
    return x, t, Conditions(Conditioning(), Conditioning(), label=label)


@pytest.mark.parametrize("path", PATHS)
def test_classifier_guidance_of_scale_one_is_bayes_rule(path):
    """The mixture steered by its exact posterior is the class alone, at every x and t."""
    mixture = Mixture(path)
    x, t, conditions = mixture_batch()
    got = ClassifierGuidance(classifier=mixture, scale=1.0)(mixture, x, t, conditions)
    sign = per_sample(2.0 * conditions.label - 1, x)
    torch.testing.assert_close(got, mixture.of_class(x, t, sign), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_classifier_guidance_has_the_score_of_the_tilted_density(path, scale):
    """grad log (p_t(x) p_t(y | x)^scale), by autograd of the densities themselves."""
    mixture = Mixture(path)
    x, t, conditions = mixture_batch()
    x.requires_grad_()
    joint = mixture(x, t)  # log p(y) p(x | y), up to a constant in x
    picked = joint.gather(1, conditions.label[:, None])[:, 0]
    log_p = torch.logsumexp(joint, 1)
    score = torch.autograd.grad((log_p + scale * (picked - log_p)).sum(), x)[0]
    alpha, sigma = (per_sample(c, x) for c in path.alpha_sigma(t))
    guided = ClassifierGuidance(classifier=mixture, scale=scale)
    with torch.no_grad():
        got = guided(mixture, x.detach(), t, conditions)
    assert not got.requires_grad
    torch.testing.assert_close((alpha * got - x.detach()) / sigma**2, score, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("path", PATHS)
def test_samples_of_a_mixture_move_to_the_class(path):
    """By quantiles of the noise instead of draws: what comes out is N(mean, std^2), each sample where the class's own
    probability flow carries it."""
    mixture = Mixture(path)
    u = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    alpha, sigma = (c.double() for c in path.alpha_sigma(torch.ones(())))
    width = (alpha**2 * mixture.std**2 + sigma**2).sqrt()
    z = torch.special.ndtri(u).view(-1, 1, 1, 1)
    times = Uniform()(path, 200, 1.0).double()
    conditions = Conditions(Conditioning(), Conditioning(), label=torch.ones(len(u), dtype=torch.int64))

    def sampled(scale):
        guided = ClassifierGuidance(classifier=mixture, scale=scale)
        start = alpha * mixture.mean + width * z
        with torch.no_grad():
            return DDIM(eta=0.0)(lambda x, t: guided(mixture, x, t, conditions), path, start, times, None)

    plain, steered, strong = (sampled(scale) for scale in (0.0, 1.0, 4.0))
    torch.testing.assert_close(steered, mixture.mean + mixture.std * z, atol=0.03, rtol=0)
    assert float(steered.mean()) == pytest.approx(1.5, abs=0.01)
    assert float(steered.std()) == pytest.approx(0.5, abs=0.02)
    assert float(plain.mean()) == pytest.approx((2 * 0.3 - 1) * 1.5, abs=0.25)
    assert float(strong.mean()) > float(steered.mean())
    assert float(strong.std()) < float(steered.std())


def test_classifier_guidance_at_pure_noise_is_finite_and_near_its_limit():
    """On rectified flow alpha(1) = 0: Bayes' rule says E[x0 | y] there, whatever x is."""
    assert (last_time(RectifiedFlow()), last_time(ScaledLinearDDPM())) == (0.99, 1.0)
    mixture = Mixture(RectifiedFlow())
    x, _, conditions = mixture_batch()
    t = torch.ones(len(x), dtype=torch.float64)
    got = ClassifierGuidance(classifier=mixture, scale=1.0)(mixture, x, t, conditions)
    expected = per_sample(1.5 * (2.0 * conditions.label.double() - 1), x).expand_as(x)
    torch.testing.assert_close(got, expected, atol=0.15, rtol=0)


def test_classifier_guidance_steers_its_base_and_leaves_it_at_scale_zero(denoiser):
    class Sums(nn.Module):
        """Logits linear in x: the gradient of log p(y) at two classes is (onehot - p) times the weights."""

        def forward(self, x_t, t):
            return torch.stack([x_t.flatten(1).sum(1), torch.zeros(len(x_t))], 1)

    conditions = Conditions(CONDITIONS.cond, CONDITIONS.null, label=torch.tensor([0, 1, 0]))
    free = ClassifierFree(scale=3.0)
    base = free(denoiser, X, T, conditions)
    calls = list(denoiser.backbone.batches)
    assert torch.equal(ClassifierGuidance(classifier=Sums(), scale=0.0, base=free)(denoiser, X, T, conditions), base)
    got = ClassifierGuidance(classifier=Sums(), scale=2.0, base=free)(denoiser, X, T, conditions)
    assert denoiser.backbone.batches == calls * 3
    alpha, sigma = denoiser.path.alpha_sigma(T)
    p = torch.sigmoid(X.flatten(1).sum(1))
    slope = torch.tensor([1.0, 0.0, 1.0]) - p
    torch.testing.assert_close(
        got, base + per_sample(2 * sigma**2 / alpha * slope, X).expand_as(X), rtol=1e-4, atol=1e-4
    )
    assert ClassifierGuidance(classifier=Sums(), scale=2.0, base=free).needs_null
    assert not ClassifierGuidance(classifier=Sums(), scale=2.0).needs_null


def test_classifier_guidance_refuses_what_it_cannot_use(denoiser):
    mixture = Mixture(RectifiedFlow())
    with pytest.raises(InputError, match=r"needs the class of each sample; sample\.py label=N"):
        ClassifierGuidance(classifier=mixture, scale=1.0)(denoiser, X, T, CONDITIONS)
    with pytest.raises(InputError, match="Autoguidance cannot be its base"):
        ClassifierGuidance(classifier=mixture, scale=1.0, base=Autoguidance(guide=denoiser, scale=2.0))


@pytest.mark.parametrize(
    ("guidance", "null"),
    [
        (Unguided(), False),
        (ClassifierFree(scale=3.0), True),
        (ClassifierFree(scale=1.0), False),
        (ClassifierFree(scale=0.0), True),
        (Interval(scale=2.0, t_low=0.1, t_high=0.2), True),
        (Rescaled(scale=2.0), True),
        (Several(scales={"text": 1.0}), True),
        (ClassifierGuidance(classifier=nn.Identity(), scale=3.0), False),
        (ClassifierGuidance(classifier=nn.Identity(), scale=3.0, base=ClassifierFree(scale=2.0)), True),
    ],
)
def test_what_needs_the_null_condition_is_refused_for_a_model_that_never_saw_it(guidance, null):
    class Conditioner:
        drop = 0.0

    assert guidance.needs_null is null
    if null:
        with pytest.raises(InputError, match=r"trained with conditioner\.module\.drop=0 never saw"):
            check_guidance(guidance, Conditioner())
    else:
        check_guidance(guidance, Conditioner())
    Conditioner.drop = 0.1
    check_guidance(guidance, Conditioner())


def test_scales_are_for_parts_that_the_conditioner_has():
    class Conditioner:
        drop, parts = 0.1, ("text", "map")

    check_guidance(Several(scales={"text": 1.0, "mask": 0.0}), Conditioner())
    for guidance in (
        Several(scales={"mask": 1.0}),
        ClassifierGuidance(classifier=nn.Identity(), scale=1.0, base=Several(scales={"mask": 1.0})),
    ):
        with pytest.raises(InputError, match="no part 'mask'; its parts are: text, map"):
            check_guidance(guidance, Conditioner())
