"""Guidance: one x0_hat from the denoiser's answers under several conditions, or with another network beside it.

It acts on x0_hat. At a given (x_t, t) x0 is an affine function of every other prediction (epsilon, v, velocity), and
the coefficients of a guided mix sum to 1, so mixing x0 is mixing any of them. ``Rescaled`` alone is no such mix and
says where it acts. Each has ``needs_null``: whether its answer depends on ``conditions.null``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from latentdiff.config.errors import InputError
from latentdiff.diffusion.coefficients import at_least_float32, per_sample
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.parameterization import T_MAX_WHERE_SINGULAR
from latentdiff.types import Conditioning, Conditions, Guidance, Path

Classifier = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, C, h, w), t (B,)) -> logits (B, classes)."""

SMALLEST_ALPHA = 1e-3
"""Of alpha / sigma at t = 1: below it, x0 does not follow from a score at t = 1."""


class Unguided:
    """The conditional answer as it is."""

    needs_null = False

    def __call__(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        return denoiser.denoise(x_t, t, conditions.cond)


class ClassifierFree:
    """null + scale (cond - null) (arXiv:2207.12598 eq. 6, with scale = 1 + w).

    Both answers come from one call on twice the batch. At scale 1 the null condition is not computed.
    """

    def __init__(self, *, scale: float):
        self.scale = scale

    @property
    def needs_null(self) -> bool:
        return self.scale != 1

    def __call__(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        if self.scale == 1:
            return denoiser.denoise(x_t, t, conditions.cond)
        cond, null = _under(denoiser.denoise, x_t, t, [conditions.cond, conditions.null])
        return null + self.scale * (cond - null)


class Interval:
    """Classifier-free guidance at t_low <= t <= t_high alone, scale 1 elsewhere (arXiv:2404.07724 section 3)."""

    def __init__(self, *, scale: float, t_low: float, t_high: float):
        if not 0 <= t_low <= t_high <= 1:
            raise InputError(f"Interval: expected 0 <= t_low <= t_high <= 1, got t_low={t_low}, t_high={t_high}")
        self.scale, self.t_low, self.t_high = scale, t_low, t_high

    @property
    def needs_null(self) -> bool:
        return self.scale != 1

    def __call__(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        if self.scale == 1:
            return denoiser.denoise(x_t, t, conditions.cond)
        cond, null = _under(denoiser.denoise, x_t, t, [conditions.cond, conditions.null])
        inside = per_sample((t >= self.t_low) & (t <= self.t_high), cond)
        return torch.where(inside, null + self.scale * (cond - null), cond)


class Rescaled:
    """Classifier-free guidance whose network output keeps the deviation of the conditional one (arXiv:2305.08891
    section 3.4, ``rescale`` is its phi).

    ``g = null + scale (cond - null)`` becomes ``(rescale std(cond) / std(g) + 1 - rescale) g``, the deviation taken
    over (C, h, w) of each sample. As published it acts on what the network predicts (epsilon, v, velocity), not on
    x0_hat: the factor is another in another parameterization.

    Raises InputError unless 0 <= rescale <= 1.
    """

    def __init__(self, *, scale: float, rescale: float = 0.7):
        if not 0 <= rescale <= 1:
            raise InputError(f"Rescaled: expected 0 <= rescale <= 1, got {rescale}")
        self.scale, self.rescale = scale, rescale

    @property
    def needs_null(self) -> bool:
        return self.scale != 1

    def __call__(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        if self.scale == 1:
            return denoiser.denoise(x_t, t, conditions.cond)
        outputs = _under(denoiser, x_t, t, [conditions.cond, conditions.null])
        cond, null = (at_least_float32(output) for output in outputs)
        guided = null + self.scale * (cond - null)
        tiny = torch.finfo(guided.dtype).tiny
        ratio = cond.flatten(1).std(1) / guided.flatten(1).std(1).clamp(min=tiny)
        guided = per_sample(self.rescale * ratio + (1 - self.rescale), guided) * guided
        return denoiser.parameterization.to_x0(guided, at_least_float32(x_t), denoiser.path, t)


class Several:
    """null + sum_k scale_k (alone_k - null): several conditions, each with its own scale (composable diffusion,
    arXiv:2206.01714 section 4, conjunction: the score of ``p(x) prod_k p(c_k | x)^scale_k``).

    ``scales``: name of a part of the conditioner -> scale. ``alone_k`` is the answer to part k with every other part
    null. A part that is not named, or has scale 0, does not count. All answers come from one call. With a single part
    it is ``ClassifierFree``. The parts are taken as independent given x; what they say only together is not seen.

    Raises InputError without scales, and when called where a named part is missing.
    """

    def __init__(self, *, scales: Mapping[str, float]):
        if not scales:
            raise InputError("Several: give at least one part and its scale, e.g. guidance.scales={text: 3.0}")
        self.scales = dict(scales)

    @property
    def parts(self) -> list[str]:
        """Those whose answers are needed."""
        return [name for name, scale in self.scales.items() if scale != 0]

    @property
    def needs_null(self) -> bool:
        return True

    def __call__(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        if missing := [name for name in self.parts if name not in conditions.alone]:
            known = ", ".join(conditions.alone) or "none"
            raise InputError(f"Several: the conditioner has no part '{missing[0]}'; its parts are: {known}")
        each = [conditions.alone[name] for name in self.parts]
        null, *alone = _under(denoiser.denoise, x_t, t, [conditions.null, *each])
        return null + sum(self.scales[name] * (x0 - null) for name, x0 in zip(self.parts, alone))


class Autoguidance(nn.Module):
    """guide + scale (x0_hat - guide), both conditional (arXiv:2406.02507 section 4).

    The guide is a worse version of the model: smaller, or trained for less time, on the same condition. It reads its
    own conditioner's ``conditions.guide`` where there is one, else ``conditions.cond``. At scale 1 it is not computed.

    Args:
        guide: denoiser on the same path and latents.
        conditioner: of the guide; None where it shares the model's.
    """

    needs_null = False

    def __init__(self, *, guide: Denoiser, scale: float, conditioner: nn.Module | None = None):
        super().__init__()
        self.guide, self.scale, self.conditioner = guide, scale, conditioner

    def forward(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        x0 = denoiser.denoise(x_t, t, conditions.cond)
        if self.scale == 1:
            return x0
        guide = self.guide.denoise(x_t, t, conditions.cond if conditions.guide is None else conditions.guide)
        return guide + self.scale * (x0 - guide)

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        return {"name": "Autoguidance", "scale": self.scale}


class ClassifierGuidance(nn.Module):
    """The score plus scale times the gradient of log p(label | x_t) (arXiv:2105.05233 section 4.2).

    With ``x0_hat = (x_t + sigma^2 score) / alpha``, on any path, it is
    ``base + scale sigma^2 / alpha grad_{x_t} log p(label | x_t)``. Where alpha(1) = 0 that has no value at t = 1; there
    classifier and coefficients are those of t = 0.99 from 0.99 on. The classifier alone is differentiated.

    Args:
        classifier: (x_t, t) -> logits, trained on x_t of the same path; frozen.
        scale: 1 is Bayes' rule where the base is not conditioned on the label.
        base: what is guided, ``Unguided`` where None; it has no network of its own.
    """

    def __init__(self, *, classifier: Classifier, scale: float, base: Guidance | None = None):
        super().__init__()
        if isinstance(base, nn.Module):
            raise InputError(
                f"ClassifierGuidance: {type(base).__name__} cannot be its base; use Unguided, ClassifierFree, "
                "Interval, Rescaled or Several"
            )
        self.classifier, self.scale = classifier, scale
        self.base = Unguided() if base is None else base

    @property
    def needs_null(self) -> bool:
        return self.base.needs_null

    @property
    def parts(self) -> list[str]:
        return getattr(self.base, "parts", [])

    def forward(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """Raises InputError without labels."""
        x0 = self.base(denoiser, x_t, t, conditions)
        if self.scale == 0:
            return x0
        if conditions.label is None:
            raise InputError(
                "classifier guidance needs the class of each sample; sample.py label=N, or data with labels"
            )
        t = t.clamp(max=last_time(denoiser.path))
        alpha, sigma = denoiser.path.alpha_sigma(t)
        gradient = self._gradient(at_least_float32(x_t), t, conditions.label)
        return x0 + per_sample(self.scale * sigma**2 / alpha, x0) * gradient

    def _gradient(self, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Of the sum over the batch: each row depends on its own sample alone."""
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            log_p = torch.log_softmax(at_least_float32(self.classifier(x_t, t)), dim=-1)
            return torch.autograd.grad(log_p.gather(-1, label[:, None]).sum(), x_t)[0]

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        base = {k: v for k, v in vars(self.base).items() if not k.startswith("_")}
        return {"name": "ClassifierGuidance", "scale": self.scale, "base": {"name": type(self.base).__name__, **base}}


def check_guidance(guidance: Guidance, conditioner: object) -> None:
    """Refuses guidance that compares with the null condition for a model that never saw it, and scales for parts that
    the conditioner has not.

    ``conditioner``: has ``drop``, its probability of the null condition in training, and the names of its ``parts``;
    what it has not is not looked at. Raises InputError.
    """
    if guidance.needs_null and getattr(conditioner, "drop", None) == 0:
        name = type(guidance).__name__
        raise InputError(
            f"guidance: {name} compares with the null condition, which a model without conditions or trained with "
            "conditioner.module.drop=0 never saw; choose guidance=none, or train with a drop above 0 (0.1 is usual)"
        )
    known = getattr(conditioner, "parts", None)
    if known is not None and (missing := [name for name in getattr(guidance, "parts", ()) if name not in known]):
        raise InputError(
            f"guidance.scales: the conditioner has no part '{missing[0]}'; its parts are: {', '.join(known)}"
        )


def last_time(path: Path) -> float:
    """The largest t at which x0 follows from a score: 1 where alpha(1) is not 0."""
    alpha, sigma = path.alpha_sigma(torch.ones(1, dtype=torch.float64, device="cpu"))
    return 1.0 if bool(alpha > SMALLEST_ALPHA * sigma) else T_MAX_WHERE_SINGULAR


def _under(
    answer: Callable[[Tensor, Tensor, Conditioning], Tensor], x_t: Tensor, t: Tensor, each: list[Conditioning]
) -> tuple[Tensor, ...]:
    """The answer under each conditioning, from one call on the batch as many times over."""
    joined = each[0]
    for conditioning in each[1:]:
        joined = joined.cat(conditioning)
    n = len(each)
    return answer(torch.cat([x_t] * n), torch.cat([t] * n), joined).chunk(n)
