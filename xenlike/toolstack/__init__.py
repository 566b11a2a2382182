"""The toolstack: configuration files, and what domains are built from.

``load_config`` and ``check_supported`` are the way in for commands, ``config_from_values`` for programs.
"""

from .config import (DomainConfig, check_supported, config_from_values, image_config, load_config, name_for, parse_config)
from .disk import Disk, parse_disk, parse_vdev, vdev_name
from .errors import ConfigError, ConfigWarning, Location, SpecError, ToolstackError
from .sizes import format_size, parse_size
from .values import KernelSpec
from .vif import Vif, parse_vif

__all__ = [
    "ConfigError", "ConfigWarning", "Disk", "DomainConfig", "KernelSpec", "Location", "SpecError", "ToolstackError",
    "Vif", "check_supported", "config_from_values", "format_size", "image_config", "load_config", "name_for", "parse_config", "parse_disk",
    "parse_size", "parse_vdev", "parse_vif", "vdev_name",
]
