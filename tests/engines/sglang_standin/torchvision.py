# SPDX-License-Identifier: Apache-2.0
"""Names that SGLang and transformers import from torchvision and do not use for text.

torchvision's wheels on PyPI are CUDA builds, which cannot be imported beside a CPU build of torch.
"""

import enum
import sys
import types


class InterpolationMode(enum.Enum):
    NEAREST = enum.auto()
    NEAREST_EXACT = enum.auto()
    BILINEAR = enum.auto()
    BICUBIC = enum.auto()
    BOX = enum.auto()
    HAMMING = enum.auto()
    LANCZOS = enum.auto()


def _module(name: str, *names: str) -> types.ModuleType:
    module = types.ModuleType(f"{__name__}.{name}")
    for absent in names:
        setattr(module, absent, None)
    sys.modules[module.__name__] = module
    return module


__path__: list[str] = []  # makes it a package
__version__ = "0.28.0"
io = _module("io", "ImageReadMode", "decode_image", "decode_jpeg")
transforms = _module("transforms")
transforms.functional = _module("transforms.functional", "pil_to_tensor")  # type: ignore[attr-defined]
transforms.v2 = _module("transforms.v2")  # type: ignore[attr-defined]
transforms.v2.functional = _module("transforms.v2.functional")  # type: ignore[attr-defined]
for module in (transforms, transforms.functional, transforms.v2.functional):  # type: ignore[attr-defined]
    module.InterpolationMode = InterpolationMode  # type: ignore[attr-defined]
