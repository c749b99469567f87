"""Evidence against "nothing changed", as log e-values: valid however often one looks.

Decides two statistics on counts. (1) `log_e_counts`: do these counts come from the reference? The null is a
Dirichlet-multinomial whose parameters are the reference's spacings, so the sampling error of the reference itself is
in the denominator; the alternative mixes Dirichlet-multinomials and smooth tilts. (2) `log_e_two_arms`: do bad events
happen more often in the second arm? What to do about evidence is decided elsewhere (`edgeml.drift`, the fleet's gate).

Sources: Lindon & Malek, "Anytime-valid inference for multinomial count data" (arXiv 2011.03567) for the mixture;
Shin, Ramdas & Rinaldo, "E-detectors" (NEJSDS 2023) for its use over time; Hoeffding (1963), theorem 4, for why the
two-arm statistic stays valid when devices are drawn without replacement.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

CONCENTRATIONS: Final = (16.0, 128.0, 1024.0)
TILTS: Final = (0.05, 0.1, 0.2, 0.4, 0.8)
TAIL_MASSES: Final = (0.003, 0.03)
SCORE_LIMIT: Final = 2.5
MISSING_SPACING: Final = 0.5
"""Pseudo-count of the missing bin: the reference has none missing."""
RATE_RATIOS: Final = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0)
_HALF_LOG_2PI: Final = 0.9189385332046727


def log_gamma(x: Doubles) -> Doubles:
    """Ln Gamma for x > 0, relative error below 1e-11, without scipy (which a device does not have).

    Stirling's series after shifting small arguments by eight.
    """
    small = x < 8
    shifted = np.where(small, x + 8, x)
    product = np.where(small, x, 1.0)
    for step in range(1, 8):
        product = product * np.where(small, x + step, 1.0)
    inverse = 1 / shifted
    square = inverse * inverse
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680)))
    result: Doubles = (shifted - 0.5) * np.log(shifted) - shifted + _HALF_LOG_2PI + series - np.log(product)
    return result


def log_dirichlet_multinomial(counts: Doubles, alpha: Doubles) -> Doubles:
    """Log marginal likelihood of a sequence with these counts (no multinomial coefficient), over the last axis."""
    total = alpha.sum(-1)
    result: Doubles = (
        log_gamma(total)
        - log_gamma(total + counts.sum(-1))
        + (log_gamma(alpha + counts) - log_gamma(alpha)).sum(-1)
    )
    return result


def log_mean_exp(values: Doubles, axis: int) -> Doubles:
    """Log of the mean of exp(values) along an axis."""
    top = values.max(axis=axis, keepdims=True)
    result: Doubles = np.squeeze(top, axis) + np.log(np.exp(values - top).mean(axis=axis))
    return result


class CountEvidence:
    """The evidence statistic of one column, prepared from its spacings.

    >>> evidence = CountEvidence((50.0, 50.0, 50.0, 50.0), design_effect=1.0, ordered=True)
    >>> same, other = evidence.log_e(np.array([[25, 26, 24, 25, 0], [90, 5, 3, 2, 0]]))
    >>> bool(same < 0), bool(other > 20)
    (True, True)
    """

    def __init__(self, spacings: tuple[float, ...], design_effect: float, *, ordered: bool) -> None:
        self._effect = design_effect
        self._alpha = np.append(np.asarray(spacings, float), MISSING_SPACING) / design_effect
        self._mass = self._alpha / self._alpha.sum()
        self._tilts = np.log(_tilted(self._mass, ordered=ordered))

    def log_e(self, counts: npt.NDArray[np.integer] | Doubles) -> Doubles:
        """Log e-value of counts [..., bins + 1], the last bin being the missing one."""
        effective = np.asarray(counts, float) / self._effect
        null = log_dirichlet_multinomial(effective, self._alpha)
        diffuse = np.stack(
            [log_dirichlet_multinomial(effective, c * self._mass + 0.05) for c in CONCENTRATIONS], -1
        )
        smooth = effective @ self._tilts.T
        alternative = np.logaddexp(log_mean_exp(diffuse, -1), log_mean_exp(smooth, -1)) - np.log(2)
        result: Doubles = alternative - null
        return result


def _tilted(mass: Doubles, *, ordered: bool) -> Doubles:
    """Alternatives near the reference: shifted, widened, narrowed, with heavier tails, with missing values."""
    bins = len(mass) - 1
    alternatives: list[Doubles] = []
    if ordered:
        middle = np.cumsum(mass) - mass / 2
        normal = NormalDist()
        score = np.clip(
            [normal.inv_cdf(min(max(u, 1e-9), 1 - 1e-9)) for u in middle], -SCORE_LIMIT, SCORE_LIMIT
        )
        score[-1] = 0.0
        width = np.append((score**2 - 1)[:-1] / 2, 0.0)
        for size in TILTS:
            for direction in (size, -size):
                alternatives += [mass * np.exp(direction * score), mass * np.exp(direction * width)]
    spikes = [(0, m) for m in TAIL_MASSES] + [(bins - 1, m) for m in TAIL_MASSES] if ordered else []
    for position, share in [*spikes, (bins, 0.01), (bins, 0.05), (bins, 0.2)]:
        spiked = mass * (1 - share) / (1 - mass[position])
        spiked[position] = share
        alternatives.append(spiked)
    stacked = np.stack(alternatives)
    result: Doubles = stacked / stacked.sum(axis=1, keepdims=True)
    return result


def log_e_two_arms(first: Doubles, second: Doubles, share: Doubles) -> float:
    """Log e-value against "bad events are not more frequent in the second arm".

    Args:
        first: [slices], weight of bad events in the first arm: at most one a device a slice, so that one broken
            device cannot pretend to be many. Fractions are allowed (x -> r**x is concave for x <= 1).
        second: [slices], the same of the second arm.
        share: [slices], the second arm's share of the devices that had trials in the slice; slices where it is
            0 or 1 carry no information.

    Returns:
        Log of the mean over RATE_RATIOS of the likelihood ratio. Conditional on an event, its arm is Bernoulli(share)
        under the null, so whatever moves both arms together cancels.
    """
    informative = (share > 0) & (share < 1)
    if not informative.any():
        return 0.0
    rho, bad_first, bad_second = share[informative], first[informative], second[informative]
    logs = []
    for ratio in RATE_RATIOS:
        theta = rho * ratio / (rho * ratio + 1 - rho)
        logs.append(
            float((bad_second * np.log(theta / rho) + bad_first * np.log((1 - theta) / (1 - rho))).sum())
        )
    return float(log_mean_exp(np.array(logs), 0))
