"""Style augmentation: an image as another artist might have drawn it.

``build_augmentation`` gives a function that turns a uint8 batch with transparency into opaque RGB in 0..1: pose,
colours, shading, outlines, softness and background change; the subject does not. Every random number comes from the
given generator, so one seed gives one result. All steps are batched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Generator, Tensor

from mmbert.plugins import read_options


class Strength(BaseModel):
    """How often (``p_*``, probability per drawing) and how strongly each change happens."""

    model_config = ConfigDict(extra="forbid")

    rotate: float = 15.0  # degrees, either way
    zoom: tuple[float, float] = (0.75, 1.12)  # size of the drawing
    stretch: float = 0.12  # relative change of the aspect ratio
    shift: float = 0.08  # of the side
    shear: float = 0.12
    tilt: float = 0.12  # perspective
    p_mirror: float = 0.0
    p_colour: float = 0.8
    hue: float = 0.12  # of a full turn
    saturation: float = 0.5
    contrast: float = 0.35
    brightness: float = 0.15
    gamma: float = 0.4  # in log units
    p_grey: float = 0.08
    p_posterise: float = 0.1
    p_relief: float = 0.5  # shading as if the outline were inflated and lit from one side
    relief: float = 0.6
    p_gradient: float = 0.5  # a smooth ramp of light over the drawing
    gradient: float = 0.4
    p_simplify: float = 0.25  # thin light or dark lines removed
    p_outline: float = 0.15
    p_blur: float = 0.3
    p_edges: float = 0.1  # strokes darkened where colours change
    p_background: float = 0.2  # otherwise white
    p_shadow: float = 0.2
    p_erase: float = 0.2


def _uniform(gen: Generator, n: int | tuple[int, ...], low: float, high: float) -> Tensor:
    return torch.rand(n, generator=gen) * (high - low) + low


def _pick(gen: Generator, n: int, p: float) -> Tensor:
    """Indices of the drawings that get a change."""
    return (torch.rand(n, generator=gen) < p).nonzero().squeeze(1)


def _b(v: Tensor) -> Tensor:
    """[n] to [n, 1, 1, 1]."""
    return v.view(-1, 1, 1, 1)


def _blur(x: Tensor, passes: int = 1, k: int = 3) -> Tensor:
    """Box blurs in a row are nearly a Gaussian one."""
    for _ in range(passes):
        x = F.avg_pool2d(F.pad(x, [k // 2] * 4, mode="replicate"), k, 1)
    return x


def _warp(x: Tensor, gen: Generator, s: Strength, size: int) -> Tensor:
    """One projective map per drawing (rotation, size, aspect, shear, shift, tilt, mirror), outside transparent."""
    n = x.shape[0]
    a = _uniform(gen, n, -s.rotate, s.rotate) * torch.pi / 180
    zoom = torch.exp(_uniform(gen, n, *torch.tensor(s.zoom).log().tolist()))
    st = torch.exp(_uniform(gen, n, -s.stretch, s.stretch))
    sx, sy = zoom * st, zoom / st
    mirror = 1 - 2 * (torch.rand(n, generator=gen) < s.p_mirror).float()
    k = _uniform(gen, n, -s.shear, s.shear)
    tx, ty = (_uniform(gen, n, -2 * s.shift, 2 * s.shift) for _ in range(2))
    px, py = (_uniform(gen, n, -s.tilt, s.tilt) for _ in range(2))
    cos, sin = a.cos(), a.sin()
    m = torch.stack(  # output place -> input place
        [
            torch.stack([mirror * cos / sx, mirror * (-sin + k * cos) / sx, tx], 1),
            torch.stack([sin / sy, (cos + k * sin) / sy, ty], 1),
            torch.stack([px, py, torch.ones(n)], 1),
        ],
        1,
    )
    r = (torch.arange(size) + 0.5) / size * 2 - 1
    yy, xx = torch.meshgrid(r, r, indexing="ij")
    q = torch.stack([xx, yy, torch.ones_like(xx)], -1).view(1, -1, 3) @ m.transpose(1, 2)
    grid = (q[..., :2] / q[..., 2:].clamp_min(0.3)).view(n, size, size, 2)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _colours(rgb: Tensor, gen: Generator, s: Strength) -> Tensor:
    """Hue turn and saturation as one 3x3 matrix per drawing, then contrast, brightness and gamma."""
    n = rgb.shape[0]
    h = _uniform(gen, n, -s.hue, s.hue) * 2 * torch.pi
    sat = 1 + _uniform(gen, n, -s.saturation, s.saturation)
    sat[_pick(gen, n, s.p_grey)] = 0
    c, d = sat * h.cos(), sat * h.sin() / 3**0.5
    # a turn about the grey axis, scaled by `sat` across it: I*c + J*(1-c)/3 + K*d
    eye, ones = torch.eye(3), torch.full((3, 3), 1 / 3)
    k = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    v = lambda t: t.view(-1, 1, 1)  # noqa: E731
    m = eye * v(c) + ones * v(1 - c) + k * v(d)
    out = (m @ rgb.flatten(2)).view_as(rgb)
    gain = _b(1 + _uniform(gen, n, -s.contrast, s.contrast))
    lift = _b(_uniform(gen, n, -s.brightness, s.brightness))
    out = ((out - 0.5) * gain + 0.5 + lift).clamp(1e-3, 1)
    return out ** _b(torch.exp(_uniform(gen, n, -s.gamma, s.gamma)))


def _relief(rgb: Tensor, alpha: Tensor, gen: Generator, s: Strength) -> Tensor:
    """Light falls on a cushion whose height is the blurred silhouette (and, in part, the blurred brightness)."""
    n, size = rgb.shape[0], rgb.shape[-1]
    small = F.avg_pool2d(torch.cat([alpha, rgb.mean(1, keepdim=True) * alpha], 1), 2)
    height = _blur(small, 3, 7)
    mix = _b(_uniform(gen, n, 0, 0.7))
    height = height[:, :1] * (1 - mix) + height[:, 1:] * mix
    dx = F.pad(height[..., 2:] - height[..., :-2], (1, 1, 0, 0))
    dy = F.pad(height[..., 2:, :] - height[..., :-2, :], (0, 0, 1, 1))
    a = _uniform(gen, n, -torch.pi, 0.3)  # mostly from above
    light = F.interpolate((dx * _b(a.cos()) + dy * _b(-a.sin().abs())) * -1, size=(size, size), mode="bilinear")
    light = light * 6 * _b(_uniform(gen, n, 0.2, 1) * s.relief)
    bright = light.clamp(0, 1)
    return rgb * (1 - (-light).clamp(0, 0.8)) + (1 - rgb) * bright


def _gradient(rgb: Tensor, gen: Generator, s: Strength) -> Tensor:
    """A ramp of light, with a slight tint, across the drawing."""
    n, size = rgb.shape[0], rgb.shape[-1]
    r = torch.linspace(-1, 1, size)
    a = _uniform(gen, n, 0, 2 * torch.pi)
    ramp = _b(a.cos()) * r.view(1, 1, 1, -1) + _b(a.sin()) * r.view(1, 1, -1, 1)
    tint = 1 + 0.5 * _uniform(gen, (n, 3), -1, 1)
    return (rgb * (1 + ramp * _b(_uniform(gen, n, 0.2, 1) * s.gradient) * tint[..., None, None])).clamp(0, 1)


def _simplify(rgb: Tensor) -> Tensor:
    """Closing then opening: thin dark and thin light lines vanish, flat areas stay."""
    up = lambda t: F.max_pool2d(t, 3, 1, 1)  # noqa: E731
    down = lambda t: -F.max_pool2d(-t, 3, 1, 1)  # noqa: E731
    return up(down(down(up(rgb))))


def augment(batch: Tensor, generator: Generator, strength: Strength) -> Tensor:
    """Draw a uint8 RGBA batch [B, 4, S, S] anew as float RGB [B, 3, S, S] in 0..1."""
    s, gen, n, size = strength, generator, batch.shape[0], batch.shape[-1]
    x = batch.float() / 255
    x = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1)  # premultiplied, so that edges stay clean
    x = _warp(x, gen, s, size)
    alpha = x[:, 3:]
    rgb = (x[:, :3] / alpha.clamp_min(1 / 255)).clamp(0, 1)

    if len(i := _pick(gen, n, s.p_simplify)):
        rgb[i] = _simplify(rgb[i])
    if len(i := _pick(gen, n, s.p_edges)):
        soft = _blur(rgb[i])
        edge = (rgb[i] - soft).abs().amax(1, keepdim=True)
        rgb[i] = rgb[i] * (1 - (edge * 6).clamp(0, 0.9))
    if len(i := _pick(gen, n, s.p_colour)):
        rgb[i] = _colours(rgb[i], gen, s)
    if len(i := _pick(gen, n, s.p_posterise)):
        levels = _b(torch.randint(2, 6, (len(i),), generator=gen).float())
        rgb[i] = (rgb[i] * levels).round() / levels
    if len(i := _pick(gen, n, s.p_relief)):
        rgb[i] = _relief(rgb[i], alpha[i], gen, s)
    if len(i := _pick(gen, n, s.p_gradient)):
        rgb[i] = _gradient(rgb[i], gen, s)
    if len(i := _pick(gen, n, s.p_outline)):
        wide = F.max_pool2d(alpha[i], 3, 1, 1)
        ink = torch.rand((len(i), 3, 1, 1), generator=gen) * 0.4
        rgb[i] = rgb[i] * alpha[i] + ink * (1 - alpha[i])
        alpha = alpha.clone()
        alpha[i] = wide

    ground = torch.ones((n, 3, 1, 1))
    if len(i := _pick(gen, n, s.p_background)):
        ground[i] = torch.rand((len(i), 3, 1, 1), generator=gen)
    ground = ground.expand(-1, -1, size, size)
    if len(i := _pick(gen, n, s.p_shadow)):
        ground = ground.clone()
        dx, dy = torch.randint(-3, 4, (2,), generator=gen).tolist()
        shade = torch.roll(_blur(alpha[i], 2, 5), (abs(dy) + 1, dx), (2, 3))
        ground[i] = ground[i] * (1 - shade * _b(_uniform(gen, len(i), 0.1, 0.5)))
    out = rgb * alpha + ground * (1 - alpha)

    if len(i := _pick(gen, n, s.p_blur)):
        out[i] = torch.lerp(out[i], _blur(out[i], 2), _b(_uniform(gen, len(i), 0.3, 1)))
    if len(i := _pick(gen, n, s.p_erase)):
        m = len(i)
        w, h = (_uniform(gen, m, 0.15, 0.4) * size for _ in range(2))
        cx, cy = (_uniform(gen, m, 0, size) for _ in range(2))
        r = torch.arange(size)
        inx = (r - cx[:, None]).abs() < w[:, None] / 2
        iny = (r - cy[:, None]).abs() < h[:, None] / 2
        hole = (iny[:, None, :, None] & inx[:, None, None, :]).float()
        colour = torch.rand((m, 3, 1, 1), generator=gen)
        out[i] = out[i] * (1 - hole) + colour * hole
    return out.clamp(0, 1)


def build_augmentation(options: dict[str, Any] | None) -> Callable[[Tensor, Generator], Tensor] | None:
    """The augmentation with a recipe's options (keys of :class:`Strength`); None for None.

    Raises:
        ConfigError: an unknown key or a value of the wrong type.
    """
    if options is None:
        return None
    strength = read_options(Strength, options, "augment")
    return lambda batch, generator: augment(batch, generator, strength)
