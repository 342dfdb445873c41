"""Ray's own schemas read a configuration of Serve. This module imports Ray, which takes a second."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from pydantic import ValidationError
from ray import __version__ as version
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from torpor.errors import ConfigurationError

if TYPE_CHECKING:
    from torpor.platforms.ray.config import ServeConfig

__all__ = ["check_with_ray"]

_CURE = "Install a version of Ray that torpor[ray] allows."


def check_with_ray(config: ServeConfig) -> str:
    """Have Ray's schemas read a configuration. ServeDeploySchema does not look into `autoscaling_config`, so both are asked.

    Returns:
        Ray's version.

    Raises:
        ConfigurationError: a schema refuses it, or would ignore a field: this Ray is not what Torpor was written for.
    """
    scaling = [one["autoscaling_config"] for app in config["applications"] for one in app.get("deployments", [])]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `metrics_interval_s` is deprecated, and still the one that counts
            ServeDeploySchema.model_validate(config)
            for one in scaling:
                AutoscalingConfig.model_validate(one)
    except ValidationError as error:
        raise ConfigurationError(f"Ray {version} does not accept the configuration: {error}. {_CURE}") from error
    if ignored := sorted({name for one in scaling for name in one} - set(AutoscalingConfig.model_fields)):
        raise ConfigurationError(f"Ray {version} has no {', '.join(ignored)} in autoscaling_config. {_CURE}")
    return str(version)
