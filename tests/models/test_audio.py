"""Sound: log-mel spectrograms as loops and transformers compute them; WAV files and what is wrong with them."""

from __future__ import annotations

import cmath
import math
import wave
from pathlib import Path

import numpy as np
import pytest

import attnarray as aa
from tests.support.messages import says

SOUND = 0.3 * np.random.default_rng(0).standard_normal(1000)


def naive(samples: np.ndarray, num_mels: int) -> np.ndarray:
    """By loops over single numbers."""
    count = len(samples)

    def at(n: int) -> float:
        return float(samples[-n if n < 0 else 2 * (count - 1) - n if n >= count else n])

    def hertz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    top = 15 + 27 * math.log(8, 6.4)
    bounds = [hertz(top * n / (num_mels + 1)) for n in range(num_mels + 2)]
    found = []
    for t in range(count // 160):
        windowed = [at(160 * t + n - 200) * math.sin(math.pi * n / 400) ** 2 for n in range(400)]
        power = [abs(sum(x * cmath.exp(-2j * math.pi * f * n / 400) for n, x in enumerate(windowed))) ** 2
                 for f in range(201)]  # fmt: skip
        row = []
        for low, center, high in zip(bounds, bounds[1:], bounds[2:], strict=False):
            slopes = [min((40 * f - low) / (center - low), (high - 40 * f) / (high - center)) for f in range(201)]
            row.append(sum(max(0.0, slope) * e for slope, e in zip(slopes, power, strict=True)) * 2 / (high - low))
        found.append([math.log10(max(e, 1e-10)) for e in row])
    largest = max(map(max, found))
    return np.array([[(max(e, largest - 8) + 4) / 4 for e in row] for row in found])


@pytest.mark.parametrize("num_mels", [5, 80])
def test_it_is_that_of_loops(num_mels: int) -> None:
    expected = naive(SOUND, num_mels)
    np.testing.assert_allclose(aa.models.log_mel(SOUND, num_mels=num_mels, seconds=None), expected, atol=1e-12)


@pytest.mark.peers
@pytest.mark.parametrize("num_mels", [80, 128])
def test_it_is_that_of_transformers(num_mels: int) -> None:
    transformers = pytest.importorskip("transformers")
    extractor = transformers.WhisperFeatureExtractor(feature_size=num_mels)
    sounds = [SOUND, np.sin(np.arange(40000) / 20), 0.1 * np.random.default_rng(1).standard_normal(490000)]
    for sound in sounds:
        expected = extractor(sound.astype("f4"), sampling_rate=16000, return_tensors="np").input_features[0]
        found = aa.models.log_mel(sound.astype("f4"), num_mels=num_mels)
        assert (found.dtype, found.shape) == ("float32", (3000, num_mels))
        np.testing.assert_allclose(found, expected.T, rtol=0, atol=1e-4)  # its PyTorch computes in float32
        sized = np.pad(sound[:480000], (0, max(0, 480000 - len(sound)))).astype("f4")
        exact = extractor._np_extract_fbank_features(sized[None], "cpu")[0]
        np.testing.assert_allclose(found, exact.T, rtol=0, atol=5e-7)


def test_sounds_of_a_batch_are_independent() -> None:
    both = aa.models.log_mel(np.stack([SOUND, 1e-3 * SOUND]), seconds=0.1)
    for row, sound in zip(both, (SOUND, 1e-3 * SOUND), strict=True):
        np.testing.assert_allclose(row, aa.models.log_mel(sound, seconds=0.1), atol=1e-13)
    assert both.shape == (2, 10, 80)


def test_silence_is_even() -> None:
    np.testing.assert_array_equal(aa.models.log_mel(np.zeros(16000), seconds=None), -1.5)


def written(path: Path, data: bytes, channels: int = 1, width: int = 2, rate: int = 16000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(data)
    return path


def test_channels_are_averaged(tmp_path: Path) -> None:
    path = written(tmp_path / "two.wav", np.array([[16384, 0], [-32768, 16384]], "<i2").tobytes(), channels=2)
    found = aa.models.read_wav(path)
    assert found.dtype == "float32"
    assert found.tolist() == [0.25, -0.25]


def test_what_is_wrong(tmp_path: Path) -> None:
    rate = written(tmp_path / "rate.wav", b"\0\0", rate=44100)
    says(ValueError, "has 44100 samples per second, expected `sample_rate` (16000). Convert it, for",
         lambda: aa.models.read_wav(rate))  # fmt: skip
    assert aa.models.read_wav(rate, 44100).tolist() == [0.0]
    says(
        ValueError,
        "has samples of 8 bits, expected 16",
        lambda: aa.models.read_wav(written(tmp_path / "8.wav", b"\0", width=1)),
    )
    (tmp_path / "text.wav").write_text("no sound, but some text")
    says(ValueError, "is no WAV file of plain samples", lambda: aa.models.read_wav(tmp_path / "text.wav"))
    says(TypeError, "`samples` has dtype int64", lambda: aa.models.log_mel(np.zeros(1000, int)))
    says(TypeError, "`samples` has type list", lambda: aa.models.log_mel([0.0]))  # type: ignore[arg-type]
    says(
        ValueError,
        "`samples` has shape (200,), expected (*batch, S) with more than 200 samples",
        lambda: aa.models.log_mel(np.zeros(200), seconds=None),
    )
    says(ValueError, "`seconds` is 0, expected a finite number above 0", lambda: aa.models.log_mel(SOUND, seconds=0))
    says(ValueError, "`num_mels` is 0, expected an integer >= 1", lambda: aa.models.log_mel(SOUND, num_mels=0))
