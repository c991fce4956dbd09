"""Sound for models of speech: WAV files, and log-mel spectrograms as Whisper has them."""

from __future__ import annotations

import functools
import math
import os
import wave
from typing import Any

import numpy as np

from attnarray import checks

WINDOW, HOP = 400, 160  # samples of a frame, and between frames
HIGHEST = 8000.0  # Hz, of the filters
SMALLEST = 1e-10  # of the energies, before the logarithm


def log_mel(samples: np.ndarray, *, num_mels: int = 80, seconds: float | None = 30.0) -> np.ndarray:
    r"""Return the log-mel spectrogram of sound with 16,000 samples per second, as Whisper's encoder takes it.

    .. math::
        e_{tm} = \max\Bigl(10^{-10}, \sum_f M_{mf} \Bigl|\sum_{n} w_n\, x_{160 t + n - 200}\,
        e^{-2 \pi i f n / 400}\Bigr|^2\Bigr), \qquad
        y_{tm} = \frac{\max(\log_{10} e_{tm},\; \max \log_{10} e - 8) + 4}{4}

    with a Hann window w of 400 samples, reflected sound beyond both ends, and M the triangles of Slaney's mel scale
    from 0 to 8000 Hz, each of area 1.

    Parameters
    ----------
    samples : (*batch, S) floating
        From -1 to 1; computed in float64.
    num_mels : int
        The number of filters: 80, or 128 for Whisper large-v3.
    seconds : float, optional
        Cut the sound, or add silence, to this length, which Whisper's encoder expects; None for neither.

    Returns
    -------
    (*batch, T, num_mels) array of the same dtype, at least float32
        A frame for each 160 samples, features last; transformers has them before the frames.

    Raises
    ------
    TypeError
        If the samples are not floating.
    ValueError
        If there are less than 201 samples, or an option is out of range.

    References
    ----------
    Radford et al., "Robust speech recognition via large-scale weak supervision", 2022, arXiv:2212.04356; Slaney,
    "Auditory toolbox", 1998.

    Examples
    --------
    >>> import numpy as np, attnarray as aa
    >>> tone = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    >>> y = aa.models.log_mel(tone, seconds=None)
    >>> y.shape, int(y.mean(0).argmax())
    ((100, 80), 11)
    """
    checks.require_array("samples", samples)
    checks.floating(samples=samples)
    checks.whole("num_mels", num_mels, 1, 1000, "the number of filters")
    x = np.asarray(samples, np.float64)
    if x.ndim < 1 or x.shape[-1] <= WINDOW // 2:
        raise ValueError(f"`samples` has shape {x.shape}, expected (*batch, S) with more than {WINDOW // 2} samples.")
    if seconds is not None:
        count = max(WINDOW // 2 + 1, round(checks.positive("seconds", seconds) * 16000))
        x = np.pad(x[..., :count], [(0, 0)] * (x.ndim - 1) + [(0, max(0, count - x.shape[-1]))])
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(WINDOW // 2, WINDOW // 2)], mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=-1)[..., ::HOP, :][..., :-1, :]
    hann = 0.5 - 0.5 * np.cos(2.0 * math.pi * np.arange(WINDOW) / WINDOW)
    energies = np.abs(np.fft.rfft(frames * hann)) ** 2  # (*batch, T, F)
    y = np.log10(np.maximum(energies @ _filters(num_mels).T, SMALLEST))
    y = np.maximum(y, y.max(axis=(-2, -1), keepdims=True, initial=-math.inf) - 8.0)
    return ((y + 4.0) / 4.0).astype(np.result_type(samples.dtype, np.float32))


def read_wav(path: str | os.PathLike[str], sample_rate: int = 16000) -> np.ndarray:
    """Return the sound of a WAV file with 16-bit samples as float32 from -1 to 1, the mean of its channels.

    Parameters
    ----------
    path : path
    sample_rate : int
        The number of samples per second that the file must have: nothing is resampled.

    Returns
    -------
    (S,) float32 array

    Raises
    ------
    ValueError
        If the file has another rate, samples of another width, or is no WAV file of plain samples (PCM).
    FileNotFoundError
        If there is no such file.

    Examples
    --------
    >>> import tempfile, wave, numpy as np, attnarray as aa
    >>> with tempfile.NamedTemporaryFile(suffix=".wav") as file:
    ...     with wave.open(file.name, "wb") as out:
    ...         out.setparams((1, 2, 16000, 0, "NONE", ""))
    ...         out.writeframes(np.array([0, 16384, -32768], "<i2").tobytes())
    ...     aa.models.read_wav(file.name).tolist()
    [0.0, 0.5, -1.0]
    """
    checks.whole("sample_rate", sample_rate, 1, 2**31, "the samples per second")
    try:
        with wave.open(os.fspath(path), "rb") as file:
            rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"`path` {os.fspath(path)!r} is no WAV file of plain samples (PCM): {error}.") from None
    convert = f"Convert it, for example with `ffmpeg -i FILE -ar {sample_rate} -c:a pcm_s16le NEW.wav`."
    name = f"`path` {os.fspath(path)!r}"
    if rate != sample_rate:
        raise ValueError(f"{name} has {rate} samples per second, expected `sample_rate` ({sample_rate}). {convert}")
    if width != 2:
        raise ValueError(f"{name} has samples of {8 * width} bits, expected 16. {convert}")
    return (np.frombuffer(data, "<i2").reshape(-1, channels).astype(np.float32) / 32768.0).mean(axis=1)


@functools.lru_cache(maxsize=4)
def _filters(num_mels: int) -> Any:
    """The triangles (num_mels, 201) over the frequencies of a window."""
    bounds = _hertz(np.linspace(0.0, 15.0 + math.log(HIGHEST / 1000.0) * 27.0 / math.log(6.4), num_mels + 2))
    frequencies = np.linspace(0.0, 8000.0, WINDOW // 2 + 1)
    low, center, high = bounds[:-2, None], bounds[1:-1, None], bounds[2:, None]
    rising, falling = (frequencies - low) / (center - low), (high - frequencies) / (high - center)
    return np.maximum(0.0, np.minimum(rising, falling)) * 2.0 / (high - low)


def _hertz(mels: np.ndarray) -> np.ndarray:
    """Slaney's scale: linear up to 1000 Hz, 15 mel, then logarithmic."""
    return np.where(mels < 15.0, mels * 200.0 / 3.0, 1000.0 * np.exp((mels - 15.0) * math.log(6.4) / 27.0))
