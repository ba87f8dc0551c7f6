"""Style augmentation: one seed, one result; the subject stays."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from mmbert.errors import ConfigError
from mmbert.vision.augment import Strength, build_augmentation

torch.set_num_threads(1)
NOTHING = {name: 0.0 for name in Strength.model_fields if name.startswith("p_")} | {
    "rotate": 0.0, "zoom": (1.0, 1.0), "stretch": 0.0, "shift": 0.0, "shear": 0.0, "tilt": 0.0,
}  # fmt: skip


def drawings(count: int = 6, size: int = 24) -> Tensor:
    """A coloured disc on a transparent ground."""
    r = torch.arange(size) - (size - 1) / 2
    disc = ((r[:, None] ** 2 + r[None, :] ** 2) < (size / 3) ** 2).to(torch.uint8)
    colours = torch.randint(0, 256, (count, 3, 1, 1), generator=Generator().manual_seed(0), dtype=torch.uint8)
    return torch.cat([colours.expand(-1, -1, size, size) * disc, (255 * disc).expand(count, 1, -1, -1)], 1)


def augmented(options: dict[str, object], seed: int = 1, batch: Tensor | None = None) -> Tensor:
    change = build_augmentation(options)
    assert change is not None
    return change(drawings() if batch is None else batch, Generator().manual_seed(seed))


def test_the_generator_decides_everything() -> None:
    torch.manual_seed(0)
    first = augmented({})
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(augmented({}), first)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    assert not torch.equal(augmented({}, seed=2), first)


@pytest.mark.parametrize("seed", range(5))
def test_results_are_opaque_colours_between_0_and_1(seed: int) -> None:
    everything = {name: 1.0 for name in Strength.model_fields if name.startswith("p_")}
    for options in ({}, everything):
        found = augmented(options, seed)
        assert found.shape == (6, 3, 24, 24)
        assert found.dtype == torch.float32
        assert torch.isfinite(found).all()
        assert float(found.min()) >= 0
        assert float(found.max()) <= 1


def test_the_given_images_stay_as_they_are() -> None:
    batch = drawings()
    augmented({}, batch=batch)
    assert torch.equal(batch, drawings())


def test_without_any_change_drawings_lie_on_white() -> None:
    found = augmented(NOTHING)
    colour, alpha = drawings()[:, :3].float() / 255, drawings()[:, 3:].float() / 255
    torch.testing.assert_close(found, colour * alpha + 1 - alpha, atol=0.02, rtol=0)


@pytest.mark.parametrize("name", [n for n in Strength.model_fields if n.startswith("p_")])
def test_each_change_shows(name: str) -> None:
    batch = drawings()
    batch[:, :3, :, :12] //= 2  # two halves, so that mirrors and edges show
    batch[:, :3, 10] = 0  # a thin line, which a simple drawing leaves out
    still = dict.fromkeys(("hue", "saturation", "contrast", "brightness", "gamma"), 0.0)
    before = NOTHING | (still | {"p_colour": 1.0} if name == "p_grey" else {})  # grey is one way to change colours
    plain, changed = (augmented(before | extra, batch=batch) for extra in ({}, {name: 1.0}))
    assert (changed - plain).abs().max() > 0.02


@pytest.mark.parametrize("change", [{"rotate": 40.0}, {"zoom": (0.5, 0.5)}, {"shift": 0.3}, {"tilt": 0.5}])
def test_each_move_shows(change: dict[str, object]) -> None:
    batch = drawings()
    batch[:, :3, :8] //= 2
    assert (augmented(NOTHING | change, batch=batch) - augmented(NOTHING, batch=batch)).abs().max() > 0.05


def test_no_options_are_no_augmentation() -> None:
    assert build_augmentation(None) is None


def test_unknown_options_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown option 'rotat' of augment.*did you mean 'rotate'"):
        build_augmentation({"rotat": 3})
    with pytest.raises(ConfigError, match="option 'rotate' of augment"):
        build_augmentation({"rotate": "much"})
