from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.diffusion.parameterization import Epsilon, Karras, Sample, V, Velocity, check_pair
from latentdiff.diffusion.path import CosineVP, KarrasVE, LinearDDPM, RectifiedFlow, ScaledLinearDDPM

PATHS = {
    "RectifiedFlow": RectifiedFlow(),
    "CosineVP": CosineVP(),
    "ScaledLinearDDPM": ScaledLinearDDPM(),
    "LinearDDPM": LinearDDPM(),
    "ScaledLinearDDPM, zero": ScaledLinearDDPM(zero_terminal_snr=True),
    "LinearDDPM, zero": LinearDDPM(zero_terminal_snr=True),
    "KarrasVE": KarrasVE(),
}
PARAMETERIZATIONS = {
    "Epsilon": Epsilon(),
    "Sample": Sample(),
    "V": V(),
    "Velocity": Velocity(),
    "Karras": Karras(),
}
TABLE = {  # t_max on each path in the order of PATHS, None where it is refused
    "Epsilon": [0.99, 0.99, 1.0, 1.0, 0.99, 0.99, None],
    "Sample": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, None],
    "V": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, None],
    "Velocity": [1.0, 1.0, None, None, None, None, None],
    "Karras": [1.0] * 7,
}
CELLS = [(name, path, t_max) for name, row in TABLE.items() for path, t_max in zip(PATHS, row, strict=True)]
ALLOWED = [
    pytest.param(PARAMETERIZATIONS[name], PATHS[path], t_max, id=f"{name}-{path}")
    for name, path, t_max in CELLS
    if t_max is not None
] + [pytest.param(Karras(sigma_data=0.5), path, 1.0, id=f"Karras(0.5)-{name}") for name, path in PATHS.items()]


@pytest.mark.parametrize(("name", "on", "t_max"), CELLS)
def test_every_cell_of_the_table(name, on, t_max):
    parameterization, path = PARAMETERIZATIONS[name], PATHS[on]
    if t_max is None:
        with pytest.raises(InputError, match=f"{name} on {type(path).__name__}: .*(velocity|standard deviation)"):
            check_pair(path, parameterization)
    else:
        assert check_pair(path, parameterization) == t_max
        assert bool(torch.isfinite(parameterization.x0_gain(path, torch.tensor([0.0, t_max]))).all())


def test_the_published_table_is_this_one():
    text = (Path(__file__).resolve().parents[2] / "docs" / "math.md").read_text()
    lines = text.split("### Which pairs are allowed")[1].split("\n#")[0].splitlines()
    head, _, *rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    said = {None: "refused", 0.99: "up to 0.99", 1.0: "allowed"}
    assert head[1:] == ["RectifiedFlow", "CosineVP", "DDPM tables", "DDPM tables, zero terminal SNR", "KarrasVE"]
    columns = {"DDPM tables": (2, 3), "DDPM tables, zero terminal SNR": (4, 5)}
    assert [row[0] for row in rows] == list(TABLE)
    for name, *cells in rows:
        for column, cell in zip(head[1:], cells, strict=True):
            for i in columns.get(column, (list(PATHS).index(column) if column in PATHS else None,)):
                assert cell == said[TABLE[name][i]], (name, column)


def _case(path, t_max, generator):
    t = torch.linspace(0.0, t_max, 1001, dtype=torch.float64)
    x0, noise, error = (torch.randn(1001, 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    return t, x0, noise, error, path.mix(x0, noise, t)


@pytest.mark.parametrize(("parameterization", "path", "t_max"), ALLOWED)
def test_the_target_means_x0(parameterization, path, t_max, generator):
    t, x0, noise, _, x_t = _case(path, t_max, generator)
    back = parameterization.to_x0(parameterization.target(x0, noise, path, t), x_t, path, t)
    torch.testing.assert_close(back, x0, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("parameterization", "path", "t_max"), ALLOWED)
def test_x0_gain_is_the_size_of_the_x0_error(parameterization, path, t_max, generator):
    t, x0, noise, error, x_t = _case(path, t_max, generator)
    output = parameterization.target(x0, noise, path, t) + error
    x0_error = (parameterization.to_x0(output, x_t, path, t) - x0).flatten(1).norm(dim=1)
    gain = parameterization.x0_gain(path, t)
    torch.testing.assert_close(x0_error, gain * error.flatten(1).norm(dim=1), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("parameterization", "path", "t_max"), ALLOWED)
def test_target_and_network_input_are_of_order_one(parameterization, path, t_max, generator):
    """In float32, ends included; the data has the standard deviation that the parameterization is told."""
    t = torch.linspace(0.0, t_max, 21)
    x0, noise = torch.randn(2, 21, 20_000, generator=generator)
    x0 = x0 * getattr(parameterization, "sigma_data", 1.0)
    fed = parameterization.network_input(path.mix(x0, noise, t), path, t)
    target = parameterization.target(x0, noise, path, t)
    exactly_one = isinstance(parameterization, Karras)
    for std in (*fed.std(dim=1).tolist(), *target.std(dim=1).tolist()):
        assert std == pytest.approx(1, abs=0.03) if exactly_one else 0.5 < std < 1.7


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_karras_on_its_own_path_is_the_preconditioning_of_diffusers(sigma_data, generator):
    from diffusers import EDMEulerScheduler

    scheduler = EDMEulerScheduler(sigma_data=sigma_data)
    ours, path = Karras(sigma_data=sigma_data), KarrasVE()
    t = torch.tensor([0.002, 0.3, 0.7, 1.0])
    x_t, output = (torch.randn(4, 2, 3, 3, generator=generator) for _ in range(2))
    sigma = path.alpha_sigma(t)[1].view(4, 1, 1, 1)
    torch.testing.assert_close(ours.network_input(x_t, path, t), scheduler.precondition_inputs(x_t, sigma))
    expected = scheduler.precondition_outputs(x_t, output, sigma)
    torch.testing.assert_close(ours.to_x0(output, x_t, path, t), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(path.network_time(t), scheduler.precondition_noise(sigma).flatten())


@pytest.mark.parametrize("path", [CosineVP(), ScaledLinearDDPM(zero_terminal_snr=True)])
def test_karras_is_minus_v_where_data_and_path_have_variance_one(path, generator):
    t, x0, noise, _, x_t = _case(path, 1.0, generator)
    v = V().target(x0, noise, path, t)
    torch.testing.assert_close(Karras().target(x0, noise, path, t), -v, atol=1e-10, rtol=0)
    torch.testing.assert_close(Karras().network_input(x_t, path, t), x_t, atol=1e-10, rtol=0)


def test_velocity_on_cosine_is_v_times_half_pi(generator):
    t, x0, noise, _, _ = _case(CosineVP(), 1.0, generator)
    v = V().target(x0, noise, CosineVP(), t)
    torch.testing.assert_close(Velocity().target(x0, noise, CosineVP(), t), torch.pi / 2 * v)


def test_karras_refuses_data_without_width():
    with pytest.raises(InputError, match="sigma_data"):
        Karras(sigma_data=0)


def test_velocity_on_rectified_flow_is_noise_minus_data(generator):
    t, x0, noise, _, _ = _case(RectifiedFlow(), 1.0, generator)
    torch.testing.assert_close(Velocity().target(x0, noise, RectifiedFlow(), t), noise - x0)


def test_v_agrees_with_diffusers(generator):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    x0, noise = (torch.randn(4, 2, 3, 3, generator=generator) for _ in range(2))
    index = torch.tensor([0, 10, 500, 999])
    t = (index + 1) / 1000
    ours = V().target(x0, noise, ScaledLinearDDPM(), t)
    torch.testing.assert_close(ours, scheduler.get_velocity(x0, noise, index), atol=1e-5, rtol=1e-5)
