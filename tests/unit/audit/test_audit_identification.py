"""Image Identifiability Precision, its embeddings, and the pool."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gradinversion.audit import Embedding, Gallery, LpipsError, Pool, load_pool, make_embedding
from gradinversion.audit.pool import LARGEST_POOL, describe, draw_batch
from gradinversion.capture import IMAGENET, ImageError, PrivateBatch, count_images, load_images, load_model
from PIL import Image
from torch import Tensor, nn

PIXELS = make_embedding("pixels")


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return load_images("photos", 12, 32)[0]


def identify(images: Tensor, gallery: Tensor, embedding: Embedding) -> tuple[bool, ...]:
    return Gallery(gallery, embedding).identify(images)


def noisy(images: Tensor, scale: float) -> Tensor:
    return (images + scale * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def test_noisy_copies_are_identified_and_others_are_not(photos: Tensor) -> None:
    assert identify(noisy(photos[:4], 0.3), photos, PIXELS) == (True,) * 4
    assert identify(noisy(photos[4:8], 0.1), photos, PIXELS) == (False,) * 4
    assert identify(photos[[1, 0, 2, 3]], photos, PIXELS) == (False, False, True, True)


def test_brightness_and_contrast_do_not_hide_an_image(photos: Tensor) -> None:
    assert identify(0.3 * photos[:4] + 0.1, photos, PIXELS) == (True,) * 4


def test_a_twin_in_the_pool_leaves_nobody_identified(photos: Tensor) -> None:
    gallery = torch.cat([photos, photos[:1]])
    assert identify(photos[:2], gallery, PIXELS) == (False, True)


def test_an_original_belongs_to_one_reconstruction_only(photos: Tensor) -> None:
    collapsed = noisy(photos[:1].repeat(3, 1, 1, 1), 0.05)
    assert sum(identify(collapsed, photos, PIXELS)) <= 1
    nearer = torch.stack([noisy(photos[:1], 0.4)[0], photos[0]])
    assert identify(nearer, photos, PIXELS) == (False, False)
    assert identify(nearer.flip(0), photos, PIXELS) == (True, False)


def test_flat_and_broken_reconstructions_are_nobody(photos: Tensor) -> None:
    flat = photos[:2].mean((2, 3), keepdim=True).expand(2, 3, 32, 32)
    assert identify(flat, photos, PIXELS) == (False, False)
    assert identify(torch.full((2, 3, 32, 32), torch.nan), photos, PIXELS) == (False, False)


@pytest.mark.parametrize("name", ["convnet", "resnet18"])
def test_the_audited_model_embeds(photos: Tensor, name: str) -> None:
    model = load_model(name, seed=0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    embedding = make_embedding("model", model=model, normalisation=IMAGENET)
    width = {"convnet": 32, "resnet18": 512}[name]
    assert embedding.embed(photos).shape == (12, width)
    assert identify(photos[:4], photos, embedding) == (True,) * 4
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert "audited model" in embedding.name


def test_a_model_without_feature_maps_embeds_by_its_output(photos: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))
    assert make_embedding("model", model=model, normalisation=IMAGENET).embed(photos).shape == (12, 5)


def test_lpips_embeds_with_the_backbone_of_its_file(photos: Tensor, tmp_path: Path) -> None:
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    torch.save(squeezenet1_1().state_dict(), tmp_path / "squeeze.pth")
    embedding = make_embedding("lpips", lpips_weights=tmp_path / "squeeze.pth")
    assert embedding.embed(photos).shape == (12, 512)
    assert "squeeze backbone" in embedding.name
    with pytest.raises(LpipsError, match=r"give audit\.embedding=pixels"):
        embedding.embed(photos[..., :16])


@pytest.mark.parametrize(
    ("kind", "words"),
    [("deep", "choose among pixels, model, lpips"), ("model", "the audited model"), ("lpips", "audit.lpips_weights")],
)
def test_an_embedding_that_cannot_be_made_is_one_sentence(kind: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        make_embedding(kind)
    assert "\n" not in str(error.value)


def test_the_pool_leaves_out_the_private_images(photos: Tensor) -> None:
    private = PrivateBatch(photos[:4], torch.arange(4), ("a", "b", "c", "d"))
    pool = load_pool("photos", private)
    assert len(pool) == count_images("photos") - 4
    assert torch.equal(pool.images[:8], photos[4:])
    assert pool.names[0] == "motorcycle"
    assert describe(pool) == "20 other images of the photos that ship with scikit-image"
    batch = draw_batch(pool, private)
    assert torch.equal(batch.images, photos[4:8])
    assert torch.equal(batch.labels, private.labels)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[int], Path]:
    def make(count: int) -> Path:
        generator = np.random.default_rng(0)
        for index in range(count):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{index:04}.png")
        return tmp_path

    return make


def private_of(folder: Path, count: int) -> PrivateBatch:
    images, names = load_images(str(folder), count, 8)
    return PrivateBatch(images, torch.arange(count), names)


def test_a_pool_smaller_than_the_batch_is_one_sentence(folder: Callable[[int], Path], photos: Tensor) -> None:
    private = PrivateBatch(photos[:4, :, :8, :8], torch.arange(4), ("a", "b", "c", "d"))
    with pytest.raises(ImageError, match="holds 3 images and the batch 4") as error:
        load_pool(str(folder(3)), private)
    assert "\n" not in str(error.value)


def test_a_pool_of_hardly_more_than_the_batch_has_no_other_batch(folder: Callable[[int], Path]) -> None:
    where = folder(7)
    private = private_of(where, 4)
    pool = load_pool(str(where), private)
    assert len(pool) == 3
    with pytest.raises(ImageError, match="holds 3 images beside the private ones"):
        draw_batch(pool, private)


def test_a_pool_with_an_unreadable_image_names_it(folder: Callable[[int], Path]) -> None:
    where = folder(5)
    private = private_of(where, 2)
    (where / "0004.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"0004\.png.*cannot be read"):
        load_pool(str(where), private)
    with pytest.raises(ImageError, match="does not exist"):
        load_pool(str(where / "nowhere"), private)


@pytest.mark.parametrize("shape", [(3, 8, 6), (1, 12, 12)])
def test_the_pool_has_the_shape_of_the_private_images(shape: tuple[int, int, int]) -> None:
    private = PrivateBatch(load_images("photos", 2, shape)[0], torch.arange(2), ("a", "b"))
    pool = load_pool("photos", private)
    assert pool.images.shape == (count_images("photos") - 2, *shape)


def test_the_largest_pools_are_cut_and_that_is_said() -> None:
    pool = Pool(torch.zeros(3, 3, 8, 8), ("a", "b", "c"), "big", f"only the first {LARGEST_POOL:,} of 5,000")
    assert describe(pool) == "3 other images of big (only the first 1,024 of 5,000)"
