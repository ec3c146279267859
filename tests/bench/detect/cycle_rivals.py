"""What others use to say "this is periodic": tests on the series of phases, onsets and run lengths, at 5 %."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Phases = NDArray[np.float64]
PERMUTATIONS = 39
ALPHA = 0.05


def fisher_g(phases: Phases, onsets: list[int], rng: np.random.Generator) -> bool:
    """Fisher's g: largest share of one frequency in the periodogram; p by the union bound."""
    power = np.abs(np.fft.rfft(phases - phases.mean()))[1:] ** 2
    share = power.max() / power.sum()
    return bool(len(power) * (1 - share) ** (len(power) - 1) <= ALPHA)


def autocorrelation(phases: Phases, onsets: list[int], rng: np.random.Generator) -> bool:
    """Largest autocorrelation at lag 4 and up, against random permutations of the series."""

    def peak(series: Phases) -> float:
        spectrum = np.fft.rfft(series - series.mean(), 2 * len(series))
        found = np.fft.irfft(np.abs(spectrum) ** 2)[: len(series)]
        return float(found[4 : max(6, len(series) // 2)].max())

    seen = peak(phases)
    higher = sum(peak(rng.permutation(phases)) >= seen for _ in range(PERMUTATIONS))
    return (1 + higher) / (1 + PERMUTATIONS) <= ALPHA


def rayleigh(phases: Phases, onsets: list[int], rng: np.random.Generator) -> bool:
    """Onsets folded at their mean gap: are they at one angle?"""
    angles = 2 * math.pi * np.array(onsets) / np.diff(onsets).mean()
    return math.exp(-len(onsets) * abs(np.exp(1j * angles).mean()) ** 2) <= ALPHA


def steady_gaps(phases: Phases, onsets: list[int], rng: np.random.Generator) -> bool:
    """A rule of thumb: coefficient of variation of the gaps between onsets below .35, from four onsets on."""
    gaps = np.diff(onsets)
    return len(gaps) >= 3 and float(gaps.std(ddof=1) / gaps.mean()) < 0.35


RIVALS: dict[str, Callable[[Phases, list[int], np.random.Generator], bool]] = {
    "Fisher g": fisher_g,
    "ACF permutation": autocorrelation,
    "Rayleigh, fitted period": rayleigh,
    "CV of gaps < .35": steady_gaps,
}
