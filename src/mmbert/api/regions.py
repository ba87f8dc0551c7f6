"""Checks that a model can read the regions of a store."""

from __future__ import annotations

from mmbert.data.region_input import RegionInput
from mmbert.errors import ConfigError
from mmbert.model.configuration import MMBertConfig
from mmbert.vision.encoders.base import VisionEncoder


def check_regions(config: MMBertConfig, vision: VisionEncoder | None, images: RegionInput) -> None:
    """Whether a model of this configuration, with this vision encoder or none, can read these regions.

    Raises:
        ConfigError: they are of another encoder, size or number of classes than the model was made for, or the model
            trains its own vision encoder.
    """
    layout, where = images.layout, images.stores[0].path
    if layout.feature_size != config.region_feature_size:
        raise ConfigError(
            f"the store has {layout.feature_size} numbers per region, the model reads {config.region_feature_size}",
            where=where,
            hint="extract with the encoder that the model was trained with",
        )
    if vision is not None and any(parameter.requires_grad for parameter in vision.parameters()):
        raise ConfigError(
            "the model trains its vision encoder, so that stored regions would not follow it",
            where=where,
            hint="leave features out, or freeze it: model.config.vision.trainable=false",
        )
    known = config.region_encoder if vision is None else vision.identity
    if known is not None and known != layout.encoder:
        raise ConfigError(
            f"the store's regions are of encoder {layout.encoder}, the model's of {known}",
            where=where,
            hint="extract with the encoder that the model was trained with",
        )
    if images.classes and layout.num_classes and config.num_region_classes not in (0, layout.num_classes):
        raise ConfigError(
            f"the store has {layout.num_classes} region classes, the model {config.num_region_classes}",
            where=where,
            hint=f"model.config.num_region_classes={layout.num_classes}, or 0 without the objective mvrc",
        )
