"""Training pictures: timm's distribution, by other means."""

import random
from functools import partial
from io import BytesIO

import numpy as np
import pytest
import timm.data.random_erasing
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import auto_augment, create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation

from backbones import InputError
from training.data import AugmentSettings, ImageFolder, Picture, training_transform
from training.data.operations import OPERATIONS, on_picture, quickened
from training.data.transforms import RandomErasing
from training.seeding import seed_everything

PHOTOGRAPHS = [Image.fromarray(pixels) for pixels in load_sample_images().images]
SMALL = [photograph.resize((80, 60)) for photograph in PHOTOGRAPHS]


def transform_of(img_size=48, channels=3, **augment):
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if channels == 3 else ([0.5], [0.25])
    data = ImageFolder(img_size=img_size, channels=channels, mean=mean, std=std)
    return training_transform(data, AugmentSettings(**augment))


STRENGTHS = {
    auto_augment.invert: [()],
    auto_augment.solarize: [(0,), (26,), (129,), (256,)],
    auto_augment.solarize_add: [(0,), (99,), (128,)],
    auto_augment.posterize: [(1,), (4,), (8,)],
    auto_augment.brightness: [(0.1,), (1.0,), (1.9,)],
    auto_augment.sharpness: [(0.1,), (1.0,), (1.9,)],
}


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_give_what_timms_give(operation, mode, resample):
    keywords = dict(fillcolor=(124, 116, 104) if mode == "RGB" else (124,), resample=resample)
    for photograph in SMALL:
        picture = photograph.convert(mode)
        for strength in STRENGTHS.get(operation, [(x,) for x in (-1.35, -0.995, -0.405, -0.0125, 0.0, 0.21, 0.3, 1.0)]):
            theirs = np.asarray(operation(picture, *strength, **keywords)).astype(int)
            pixels = np.array(picture)
            ours = OPERATIONS[operation](pixels, *strength, **keywords)
            assert ours.dtype == np.uint8 and ours.shape == theirs.shape
            assert abs(ours.astype(int) - theirs).max() <= 1
            assert np.array_equal(pixels, np.array(picture))  # left as they were


@pytest.mark.parametrize("operation", [auto_augment.shear_x, auto_augment.translate_y_rel])
def test_interpolations_of_an_operation_are_drawn_as_timm_draws_them(operation):
    both = dict(fillcolor=(124, 116, 104), resample=(Image.Resampling.BILINEAR, Image.Resampling.BICUBIC))
    for seed in range(8):
        random.seed(seed)
        theirs = np.asarray(operation(SMALL[0], 0.206, **both)).astype(int)
        random.seed(seed)
        ours = OPERATIONS[operation](np.array(SMALL[0]), 0.206, **both)
        assert abs(ours.astype(int) - theirs).max() <= 1


def test_posterizing_to_no_bits_is_black():
    for bits in (0, -4):  # as magnitudes beyond 10 ask for
        assert not OPERATIONS[auto_augment.posterize](np.array(SMALL[0]), bits).any()


@pytest.mark.parametrize(
    "policy", ["rand-m9-mstd0.5-inc1", "rand-m7-mstd1-tweights", "augmix-m5-w4-d2", "3a", "original"]
)
def test_a_quickened_policy_draws_and_gives_what_timms_gives(policy):
    def build():
        parameters = dict(translate_const=20, img_mean=(124, 116, 104), interpolation=Image.Resampling.BICUBIC)
        if policy.startswith("rand"):
            return auto_augment.rand_augment_transform(policy, parameters)
        if policy.startswith("augmix"):
            return auto_augment.augment_and_mix_transform(policy, parameters)
        return auto_augment.auto_augment_transform(policy, parameters)

    ours, theirs = quickened(build()), build()
    compared = 0
    for seed in range(40):
        seed_everything(seed, "test")
        mine = ours(np.array(SMALL[seed % 2])).astype(int)
        seed_everything(seed, "test")
        try:
            expected = np.asarray(theirs(SMALL[seed % 2])).astype(int)
        except ValueError as error:  # Pillow 13 refuses timm's strongest posterize
            assert "bits" in str(error)
            continue
        # A second operation can blow a difference of one up: equalize does.
        assert abs(mine - expected).mean() < 1
        compared += 1
    assert compared > 30


def test_without_a_policy_a_picture_is_what_timms_transform_gives():
    """With the same draws: the crop by Python's generator; no flip, since timm draws it elsewhere."""
    for mode in ("bilinear", "bicubic", "random"):
        ours = transform_of(hflip=0.0, interpolation=mode)
        theirs = create_transform(
            48, is_training=True, hflip=0.0, color_jitter=None, interpolation=mode, normalize=False
        )
        for seed in range(20):
            photograph = PHOTOGRAPHS[seed % 2]
            random.seed(seed)
            mine = ours(Picture(photograph, 3)).int()
            random.seed(seed)
            assert (mine - theirs(photograph).int()).abs().max() <= 1


def test_a_large_jpeg_is_decoded_small_and_stays_sharp(monkeypatch):
    content = BytesIO()
    PHOTOGRAPHS[0].resize((1280, 854), Image.Resampling.LANCZOS).save(content, "JPEG", quality=92)
    decoded = []

    class Recorded(Picture):
        def pixels(self, shrink=1):
            decoded.append((shrink, super().pixels(shrink).shape))
            return super().pixels(shrink)

    picture = Recorded(content.getvalue(), 3)
    for img_size, shrink, shape in ((106, 8, (107, 160, 3)), (200, 4, (214, 320, 3)), (500, 1, (854, 1280, 3))):
        transform = transform_of(img_size, hflip=0.0, scale=[1.0, 1.0], ratio=[1.5, 1.5])
        decoded.clear()
        ours = transform(picture).float()
        assert decoded == [(shrink, shape)]
        with monkeypatch.context() as patch:
            patch.setattr("training.data.transforms.SHRINKS", ())
            exact = transform(picture).float()
        assert (ours - exact).abs().mean() < 4.5
        detail = [(x[:, :, 1:] - x[:, :, :-1]).std().item() for x in (ours, exact)]
        assert detail[0] == pytest.approx(detail[1], rel=0.1)


def test_moments_are_those_of_timm():
    """Mean and deviation of all pixels over many draws, whole policy, flip and erasing included."""
    settings = dict(auto_augment="rand-m9-mstd0.5-inc1", interpolation="random")
    ours = transform_of(32, random_erasing=0.25, **settings)
    theirs = create_transform(32, is_training=True, re_prob=0.0, color_jitter=None, normalize=False, **settings)
    for operation in theirs.transforms[2].ops:
        if operation.aug_fn is auto_augment.posterize:  # Pillow 13 refuses timm's at its strongest
            operation.aug_fn = partial(on_picture, OPERATIONS[auto_augment.posterize])
    erase = timm.data.random_erasing.RandomErasing(0.25, mode="pixel", device="cpu")
    mean, std = (255 * torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    sums = {"ours": [], "theirs": []}
    seed_everything(0, "test")
    for i in range(1500):
        photograph = SMALL[i % 2]
        sums["ours"].append(ours(Picture(photograph, 3)).float())
        sums["theirs"].append((erase((theirs(photograph).float() - mean) / std) * std + mean).clamp(0, 255))
    a, b = (torch.stack(sums[side]) for side in ("ours", "theirs"))
    error = (a.mean((1, 2, 3)).var() / 1500 + b.mean((1, 2, 3)).var() / 1500).sqrt()
    assert (a.mean() - b.mean()).abs() < 4 * error
    assert a.std().item() == pytest.approx(b.std().item(), rel=0.04)
    # Left and right, top and bottom alike: flips, crops and shears have no side of their own that timm's have not.
    for axis in (2, 3):
        profile_a, profile_b = (x.mean((0, 1, 5 - axis)) for x in (a, b))
        assert (profile_a - profile_b).abs().max() < 8 * error


def test_crops_have_timms_areas_and_aspects(monkeypatch):
    drawn = []
    get_params = RandomResizedCropAndInterpolation.get_params

    def recorded(*arguments):
        drawn.append(get_params(*arguments))
        return drawn[-1]

    transform = transform_of(8, scale=[0.2, 0.9], ratio=[0.5, 2.0])
    monkeypatch.setattr(transform.crop, "get_params", recorded)
    seed_everything(0, "test")
    picture = Picture(Image.new("RGB", (400, 400)), 3)
    for _ in range(1000):
        transform(picture)
    _, _, h, w = np.array(drawn).T
    area, log_aspect = h * w / 400**2, np.log(w / h)
    # A crop that does not fit is drawn again, which favours small and square ones.
    random.seed(1)
    expected = np.array([get_params(picture.image(), (0.2, 0.9), (0.5, 2.0))[2:] for _ in range(4000)])
    assert area.mean() == pytest.approx((expected.prod(1) / 400**2).mean(), abs=0.025)
    assert area.std() == pytest.approx((expected.prod(1) / 400**2).std(), abs=0.02)
    assert abs(log_aspect.mean()) < 0.05
    assert log_aspect.std() == pytest.approx(np.log(expected[:, 1] / expected[:, 0]).std(), abs=0.03)


def test_half_of_the_pictures_are_flipped():
    transform = transform_of(16, scale=[1.0, 1.0], ratio=[1.0, 1.0])
    picture = Picture(Image.fromarray(np.tile(np.arange(16, dtype=np.uint8), (16, 1))).convert("RGB"), 3)
    seed_everything(0, "test")
    outcomes = [transform(picture) for _ in range(1000)]
    flipped = [bool(image[0, 0, 0] > image[0, 0, -1]) for image in outcomes]
    assert 0.45 < np.mean(flipped) < 0.55
    for image, was_flipped in zip(outcomes, flipped):
        assert torch.equal(image.flip(-1) if was_flipped else image, outcomes[flipped.index(False)])


def test_erased_rectangles_are_those_of_timm():
    """With the same draws, the same rectangle."""
    ours = RandomErasing(0.6, [0.5] * 3, [0.1] * 3)
    theirs = timm.data.random_erasing.RandomErasing(0.6, mode="pixel", device="cpu")
    erased = 0
    for seed in range(200):
        random.seed(seed)
        mine = ours(torch.zeros(3, 40, 30, dtype=torch.uint8)) > 0
        random.seed(seed)
        assert torch.equal(mine.any(0), (theirs(torch.zeros(3, 40, 30)) != 0).any(0))
        erased += bool(mine.any())
    assert 90 < erased < 150


def test_erased_values_are_noise_of_the_data():
    erasing = RandomErasing(1.0, [0.4, 0.5, 0.6], [0.05, 0.1, 0.15])
    torch.manual_seed(0)
    values = torch.cat([x[:, x.sum(0) > 0] for x in (erasing(torch.zeros(3, 64, 64).byte()) for _ in range(50))], 1)
    torch.testing.assert_close(values.float().mean(1) / 255, torch.tensor([0.4, 0.5, 0.6]), atol=2e-3, rtol=0)
    torch.testing.assert_close(values.float().std(1) / 255, torch.tensor([0.05, 0.1, 0.15]), atol=2e-3, rtol=0)
    assert RandomErasing(0.0, [0.5], [0.5])(torch.zeros(1, 8, 8).byte()).sum() == 0
    extreme = RandomErasing(1.0, [0.5], [9.0])(torch.full((1, 64, 64), 7).byte())
    assert {0, 255} <= set(extreme.unique().tolist())  # clamped, not wrapped


@pytest.mark.parametrize("setting", [dict(random_erasing=-0.1), dict(hflip=1.5), dict(interpolation="lanczos")])
def test_settings_that_cannot_work(setting):
    with pytest.raises(InputError, match=f"recipe.augment.{next(iter(setting))}"):
        AugmentSettings(**setting)
