import pytest
import torch

from tutelage.errors import InputError
from tutelage.networks.mae import MAEDecoder, MaskedAutoencoder, patchify, standardize_patches, unpatchify
from tutelage.networks.vit import VisionTransformer, gather_tokens, mask_indices


def _vit(**options):
    torch.manual_seed(0)
    return VisionTransformer(**{"image_size": 8, "patch_size": 2, "dim": 16, "depth": 2, "in_chans": 1, **options}).eval()


def test_named_tokens_stand_in_order_before_the_patches():
    vit = _vit(tokens={"register": 3, "class": 1, "rotation": 1}, num_classes=5)
    images = torch.randn(2, 1, 8, 8)
    features = vit.forward_features(images)
    assert {name: tuple(v.shape) for name, v in features.items()} == {
        "register": (2, 3, 16),
        "class": (2, 1, 16),
        "rotation": (2, 1, 16),
        "patches": (2, 16, 16),
    }
    assert list(features) == ["register", "class", "rotation", "patches"]
    assert torch.allclose(vit(images), vit.head(features["class"][:, 0]))
    assert _vit(tokens={}).pool == "patches" and _vit(pool="patches")(images).shape == (2, 16)
    with pytest.raises(InputError, match="no token 'colour'"):
        _vit(pool="colour")


def test_patches_outside_the_list_are_never_seen():
    vit = _vit()
    images, keep = torch.randn(2, 1, 8, 8), torch.tensor([[0, 5, 15], [3, 4, 8]])
    hidden = torch.ones(2, 16, dtype=torch.bool).scatter(1, keep, False)
    pixels = patchify(images, (2, 2))
    changed = unpatchify(torch.where(hidden[..., None], pixels + 7, pixels), (2, 2), (4, 4))
    assert torch.equal(vit(images, keep), vit(changed, keep))
    assert not torch.allclose(vit(images), vit(changed))


def test_all_patches_in_any_order_give_the_same_class_token():
    vit = _vit(positions="sincos")
    images = torch.randn(2, 1, 8, 8)
    order = torch.stack([torch.randperm(16), torch.randperm(16)])
    assert torch.allclose(vit(images), vit(images, order), atol=1e-5)
    plain, shuffled = vit.forward_features(images)["patches"], vit.forward_features(images, order)["patches"]
    assert torch.allclose(gather_tokens(plain, order), shuffled, atol=1e-5)


def test_new_tokens_come_first_and_change_outputs_but_no_shape():
    vit = _vit()
    images = torch.randn(2, 1, 8, 8)
    before = vit(images)
    vit.add_tokens("register", 4, torch.Generator().manual_seed(1))
    features = vit.forward_features(images)
    assert list(features) == ["register", "class", "patches"] and features["register"].shape == (2, 4, 16)
    assert not torch.allclose(before, vit(images)) and "tokens.register" in dict(vit.named_parameters())
    with pytest.raises(InputError, match="already"):
        vit.add_tokens("class", 1, torch.Generator())


def test_clips_and_other_sizes():
    clip = _vit(image_size=(4, 8, 8), patch_size=(2, 4, 4), positions="sincos")
    assert clip.grid == (2, 2, 2) and clip.forward_features(torch.randn(1, 1, 4, 8, 8))["patches"].shape == (
        1,
        8,
        16,
    )
    assert clip.forward_features(torch.randn(1, 1, 8, 8, 8))["patches"].shape == (1, 16, 16)
    vit = _vit()
    assert vit.forward_features(torch.randn(1, 1, 12, 8))["patches"].shape == (1, 24, 16)
    for wrong in (torch.zeros(1, 1, 9, 8), torch.zeros(1, 1, 2, 8, 8)):
        with pytest.raises(InputError, match="not covered"):
            vit(wrong)
    with pytest.raises(InputError, match="do not divide"):
        _vit(patch_size=3)


def test_positions_belong_to_places():
    vit = _vit(positions="sincos")
    with torch.no_grad():
        vit.patch_embed.proj.weight.zero_()
    embedded = vit.embed(torch.randn(1, 1, 8, 8))[0] - vit.patch_embed.proj.bias
    assert torch.allclose(embedded, vit.positions, atol=1e-6) and not vit.positions.requires_grad


@pytest.mark.parametrize("patch, shape", [((2, 4), (2, 3, 8, 8)), ((2, 2, 4), (2, 3, 4, 6, 8))])
def test_patchify_and_its_inverse(patch, shape):
    images = torch.randn(shape)
    grid = tuple(side // part for side, part in zip(shape[2:], patch))
    patches = patchify(images, patch)
    assert torch.equal(unpatchify(patches, patch, grid), images)
    first = images[(slice(None), slice(None), *(slice(part) for part in patch))]
    assert torch.equal(patches[:, 0], first.flatten(2).transpose(1, 2).flatten(1))
    assert torch.allclose(standardize_patches(patches).var(-1), torch.ones(patches.shape[:2]), atol=1e-4)


def test_mask_indices_are_in_raster_order():
    mask = torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0]]).bool()
    visible, masked = mask_indices(mask)
    assert visible.tolist() == [[0, 2], [2, 3]] and masked.tolist() == [[1, 3], [0, 1]]
    with pytest.raises(InputError, match="equally many"):
        mask_indices(torch.tensor([[1, 1], [0, 1]]).bool())


def test_decoder_returns_to_raster_order_and_to_the_targets_asked():
    torch.manual_seed(0)
    decoder = MAEDecoder(6, (2, 3), 4, dim=16, depth=1).eval()
    visible, keep = torch.randn(2, 2, 6), torch.tensor([[4, 1], [0, 5]])
    full = decoder(visible, keep)
    assert full.shape == (2, 6, 4)
    swapped = decoder(visible.flip(1), keep.flip(1))
    assert torch.allclose(full, swapped, atol=1e-5)
    targets = torch.tensor([[2, 0], [3, 1]])
    asked = decoder(visible, keep, targets)
    assert torch.allclose(asked.flip(1), decoder(visible, keep, targets.flip(1)), atol=1e-5)
    rest = mask_indices(torch.ones(2, 6, dtype=torch.bool).scatter(1, keep, False))[1]
    assert torch.allclose(decoder(visible, keep, rest), gather_tokens(full, rest), atol=1e-5)


def test_masked_autoencoder_ignores_what_it_may_not_see_and_learns():
    torch.manual_seed(0)
    mae = MaskedAutoencoder(_vit(positions="sincos"), in_chans=1, dim=16, standardize=False)
    mask = torch.zeros(8, 16, dtype=torch.bool)
    mask[:, ::2] = True
    images = torch.randn(8, 1, 1, 1).expand(8, 1, 8, 8).contiguous()
    pixels = patchify(images, (2, 2))
    changed = unpatchify(torch.where(mask[..., None], pixels + 3, pixels), (2, 2), (4, 4))
    assert torch.equal(mae(images, mask), mae(changed, mask))
    by_hand = ((mae(images, mask) - pixels)[mask].view(8, 8, 4) ** 2).mean((1, 2))
    assert torch.allclose(mae.loss(images, mask), by_hand, atol=1e-6)
    optimizer = torch.optim.Adam(mae.parameters(), 1e-2)
    first = float(mae.loss(images, mask).mean())
    for _ in range(60):
        optimizer.zero_grad()
        mae.loss(images, mask).mean().backward()
        optimizer.step()
    assert float(mae.loss(images, mask).mean()) < first / 3
    with pytest.raises(InputError, match="9 places for 16"):
        mae(images, torch.zeros(8, 9, dtype=torch.bool))
