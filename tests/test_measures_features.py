"""The classifier whose features measures use: it learns, is normalised, and refuses bad data."""

import pytest
import torch

from weightloom.errors import ConfigError, DataError, ShapeError
from weightloom.measures import FeatureClassifier

LABELS = torch.arange(60) % 3
CONV, DENSE = (1, 12, 20), (1, 8, 8)


def images(event=DENSE, noise=0.3):
    """Three classes of noisy images, each brighter than the last."""
    made = noise * torch.rand(60, *event, generator=torch.Generator().manual_seed(0))
    return made + LABELS[:, None, None, None]


@pytest.fixture(scope="module", params=[CONV, DENSE])
def trained(request):
    x = images(request.param)
    return FeatureClassifier.fit(x, LABELS, "levels", steps=150, batch=32), x


def test_it_learns_its_data(trained):
    classifier, x = trained
    assert classifier.name == "levels classifier"
    assert classifier.accuracy(x, LABELS) == 1
    assert classifier.accuracy(x, (LABELS + 1) % 3) == 0
    assert classifier(x).argmax(1).equal(LABELS)


def test_features_of_the_training_data_have_mean_0_and_total_variance_1(trained):
    classifier, x = trained
    features = classifier.features(x)
    assert features.shape == (60, 64) and not features.requires_grad
    assert features.mean(0).abs().max() < 1e-6
    assert features.square().sum(1).mean().item() == pytest.approx(1, rel=1e-5)


def test_a_seed_gives_the_same_classifier_and_leaves_other_random_numbers_alone():
    before = torch.get_rng_state()
    first, same, other = (
        FeatureClassifier.fit(images(), LABELS, "levels", steps=5, seed=seed).features(images())
        for seed in (1, 1, 2)
    )
    assert first.equal(same) and not first.equal(other)
    assert torch.get_rng_state().equal(before)


def test_a_list_of_images_is_read_as_a_tensor_of_them():
    kept = [
        FeatureClassifier.fit(x, LABELS, "levels", steps=3).features(images())
        for x in (images(), list(images()))
    ]
    assert kept[0].equal(kept[1])


def test_scanned_digits_are_told_apart():
    datasets = pytest.importorskip("sklearn.datasets", reason="needs the digits of scikit-learn")
    pixels, labels = map(torch.tensor, datasets.load_digits(return_X_y=True))
    x = pixels.float().reshape(-1, *DENSE) / 16
    classifier = FeatureClassifier.fit(x[:1000], labels[:1000], "digits", steps=300)
    assert classifier.accuracy(x[1000:], labels[1000:]) > 0.9


SMALL = FeatureClassifier(DENSE, 3, "levels")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: FeatureClassifier.fit(images()[:20], LABELS[:20] // 2 * 2, "levels"),
            DataError,
            r"Classes \[1\] of 3 have no sample",
        ),
        (
            lambda: FeatureClassifier.fit(images(), LABELS, "levels", classes=5),
            DataError,
            r"Classes \[3, 4\] of 5",
        ),
        (
            lambda: FeatureClassifier.fit(images(), LABELS, "levels", classes=2),
            ConfigError,
            r"`classes=2` with labels from 0 to 2",
        ),
        (
            lambda: FeatureClassifier.fit([torch.rand(1, 8, 8), torch.rand(1, 9, 8)], LABELS, "x"),
            ShapeError,
            r"2 shapes, such as \(1, 8, 8\) and \(1, 9, 8\)",
        ),
        (
            lambda: FeatureClassifier.fit(images().byte(), LABELS, "levels"),
            ShapeError,
            r"torch\.uint8.*`images\.float\(\) / 255`",
        ),
        (lambda: FeatureClassifier.fit([], LABELS, "levels"), ShapeError, r"shape"),
        (
            lambda: FeatureClassifier.fit(images(), LABELS[:5], "levels"),
            ShapeError,
            r"60 samples, but `labels` has shape \(5,\)",
        ),
        (
            lambda: FeatureClassifier.fit(images() / 0, LABELS, "levels"),
            DataError,
            r"NaN or infinity in 60 of 60",
        ),
        (lambda: SMALL.features(images(CONV)), ShapeError, r"levels classifier .* \(1, 8, 8\)"),
        (lambda: SMALL.accuracy(images(), LABELS[:5]), ShapeError, r"`labels`"),
        (lambda: SMALL.predict(images() / 0), DataError, r"`x` contains NaN"),
    ],
)
def test_bad_data_are_named_with_the_way_out(call, error, words):
    with pytest.raises(error, match=words):
        call()
