"""The healthy law of a drafter's acceptance, learned from its answers, and the evidence of one answer against it.

An answer's acceptance is a noisy look at a conditional acceptance p that its content decides. What healthy content
there is, is a mixing distribution over a grid of p, learned by predictive recursion (Newton and Zhang, Biometrika 86,
1999; Martin and Ghosh, Statistical Science 23, 2008): no classes have to be named, noise of short answers is taken out,
and the memory is the grid. docs/detection.md has the model.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import msgspec
import numpy as np

from detector.stats.acceptance_grid import (
    ACCEPTANCES,
    GRID,
    GRID_STEP,
    Array,
    accepted_per_step,
    begun,
    logit,
)

OVERDISPERSIONS = (3.0, 5.0, 8.0, 13.0, 21.0, 14.0, 28.0)
"""Verify steps that count as one independent step in a long answer: content makes the steps of an answer alike. Which
of these it is, is learned too."""
WANDERS = (False, False, False, False, False, True, True)
"""Whether content wanders slowly inside answers, so that a short one has less of it; else all answers have as much."""
WANDER_STEPS = 60.0
"""Correlation length of such a wander, in verify steps: with 28 as real logs have it (``stats.stream``)."""
OVERDISPERSION_PRIOR = (0.2, 0.25, 0.2, 0.1, 0.05, 0.1, 0.1)
UNSCORED_ANSWERS = 5
"""First answers, which are predicted from hardly anything."""
SCORE_MEMORY = 0.998
"""Share that an overdispersion's score keeps at each answer."""
LOWEST_CONTENT = 0.6
"""Healthy content was never seen below (prose; DFlash, MTP, EAGLE drafters); what is not yet learned may be as low."""
LOWEST_CONTENT_SHARE = 0.75
"""A drafter whose mean is low has its lowest content at this share of it."""
UNSEEN = 0.1
"""Share of answers that may be of content never seen here, however long the watch has learned."""
RARE_CONTENT = 0.85
"""Content with at least this share of what was learned may make up all of the traffic for a while."""
FREAK = 1 / 4000
"""Share of healthy answers that look like a dead drafter's for a reason of their own."""
COLLAPSED_SHARE, COLLAPSED_TOP_SHARE = 0.35, 0.7
"""A collapsed drafter has about this share of its usual conditional acceptance, and at most this."""
TAIL = 10
"""Degrees of the tail: an answer E nats off counts as if (1 + E / TAIL)^-TAIL likely, not exp(-E)."""
LENGTHS = 20
"""So many lengths of answers, in a factor of e, are told apart for how alike their steps are."""
MAX_SHARE = 0.999
"""A higher acceptance counts as this."""
TRUSTED_ANSWERS = 40
"""The first answers make the reference as they are; later ones count by how likely they are not of a collapse."""
DOUBTED = 0.2
"""Share of collapsed answers expected among those that raised no alarm."""
COLLAPSE_MEMORY_ANSWERS = 30
COLLAPSE_PRIOR_ANSWERS, MIN_COLLAPSE_PRIOR = 4.0, 0.3
"""The prior of what collapses look like weighs as much as so many collapsed answers, and never less than this share."""
BEGUN_SHARE = 0.5
"""Of collapses, those that begin inside an answer; the others begin before one."""
MEMORY_ANSWERS = 400
"""Answers after which the learning rate no longer falls: older ones are slowly forgotten."""
_SMOOTHING = (0.03, 0.12, 0.7, 0.12, 0.03)
"""An answer stands for contents near its own as well."""


_SHARES = np.array(ACCEPTANCES)
_WANDERING = np.array(WANDERS)[:, None]
_EXCESS = np.array(OVERDISPERSIONS)[:, None] - 1
_CONSTANT_EXCESS, _WANDERING_EXCESS = _EXCESS * ~_WANDERING, _EXCESS * _WANDERING
_UPPER_EDGES = np.array(GRID) + GRID_STEP / 2
_DIVERGENCES: Array = np.array([np.ones(len(GRID)), -np.log(_SHARES), -np.log1p(-_SHARES)])
"""Rows: what a step's own log likelihood, its accepted and its rejected positions add to its divergence."""


@lru_cache(maxsize=128)
def _collapse_prior(usual: float) -> Array:
    """A collapsed drafter of this usual acceptance: a Laplace law of its logit."""
    middle, top = logit(COLLAPSED_SHARE * usual), logit(COLLAPSED_TOP_SHARE * usual)
    logits = np.array(GRID)
    weights = np.exp(-np.abs(logits - middle)) * (logits <= top + GRID_STEP / 2)
    prior: Array = weights / weights.sum()
    return prior


@lru_cache(maxsize=128)
def _content_prior(lowest: float) -> Array:
    """Healthy content before any was seen: any logit from the lowest to 3, equally likely."""
    low = min(2.0, logit(lowest))
    weights = np.array([1.0 if low - GRID_STEP / 2 <= one <= 3.0 else 0.0 for one in GRID])
    prior: Array = weights / weights.sum()
    return prior


class _Model(NamedTuple):
    """The hypotheses."""

    shares: Array
    """Posterior share of each overdispersion."""
    healthy: Array
    """For each overdispersion, what healthy answers may come from: the content learned, and some never seen."""
    collapsed: Array
    all: Array
    """Rows: healthy, collapsed, and a collapse that begins in the answer, over all overdispersions and grid points, to
    be weighted with a kernel."""

    def likelihoods(self, kernels: Array) -> Array:
        """Of an answer, or of each of several: healthy, collapsed, and with a collapse that begins in it."""
        rows = kernels.ravel() if kernels.ndim == 2 else kernels.reshape(len(kernels), -1).T
        likelihoods: Array = self.all.dot(rows)
        return likelihoods


class LogRatios(NamedTuple):
    """Log likelihood ratios of one answer against a healthy one.

    Their exponentials have a mean of at most 1 over answers of any one content with a share of at least
    ``RARE_CONTENT``: they are evidence for a collapse.
    """

    collapsed: float
    """Of an answer that is collapsed as a whole."""
    first: float
    """Of the first answer of a collapse, which may begin inside it."""


class Acceptance(msgspec.Struct, frozen=True):
    """What an answer says about its drafter."""

    share: float
    """Conditional acceptance: of the positions tried, those accepted; 0..1."""
    positions: int | None
    """Draft positions that ``share`` covers: 1 for p_0, K for the acceptance length, None: K is unknown."""
    tokens: float
    """Decoded tokens of the answer."""
    depth: int | None = None
    """K, from which follows how many steps the tokens took; None: it is unknown."""


class AcceptanceLaw(msgspec.Struct, kw_only=True):
    """Mixing distribution of healthy acceptance over ``GRID``, for each overdispersion, and how well each predicts."""

    weights: bytes = msgspec.field(default_factory=lambda: _rows(_content_prior(LOWEST_CONTENT)).tobytes())
    """Float64, a row for each overdispersion and a column for each grid point."""
    scores: bytes = np.log(OVERDISPERSION_PRIOR).tobytes()
    """For each overdispersion, the log predictive likelihood of the answers so far, with forgetting."""
    answers: int = 0
    collapsed: bytes = b""
    """Mixing distribution of the collapses seen, which sharpens the alternative."""
    collapsed_answers: int = 0
    depth: int | None = None
    """K of the answers that are learned; None: it is unknown."""

    def learn(self, *acceptances: Acceptance) -> None:
        """Take healthy answers in: predictive recursion with weights 1/n, not below 1/``MEMORY_ANSWERS``.

        Several at once are all predicted from what was known before the first of them.
        """
        if self.answers == 0:
            # A drafter may be poor from the start.
            lowest = min(LOWEST_CONTENT, LOWEST_CONTENT_SHARE * acceptances[0].share)
            self.weights = _rows(_content_prior(round(lowest, 2))).tobytes()
        self.depth = acceptances[-1].depth
        kernels, model = np.array([_kernel(one) for one in acceptances]), self._model()
        joint = model.healthy * kernels
        predicted = np.maximum(joint.sum(axis=2), 1e-300)
        trust = np.ones(len(acceptances))
        if self.answers >= TRUSTED_ANSWERS:
            healthy, collapsed, _ = model.likelihoods(kernels)
            trust = healthy / (healthy + DOUBTED * collapsed)
        numbers = np.arange(self.answers + 1, self.answers + len(acceptances) + 1)
        self.answers += len(acceptances)
        kept, shares = _recursion(trust * np.maximum(1 / (numbers + 1), 1 / MEMORY_ANSWERS))
        gains = shares[:, None] / predicted
        weights = kept * self._weights() + (gains[:, :, None] * joint).sum(axis=0) @ _SMOOTHER
        self.weights = (weights / weights.sum(axis=1, keepdims=True)).tobytes()
        if self.answers > UNSCORED_ANSWERS:
            memory = SCORE_MEMORY ** (self.answers - numbers)
            scores = SCORE_MEMORY ** len(acceptances) * np.frombuffer(self.scores)
            scores += (memory * trust) @ np.log(predicted)
            self.scores = (scores - scores.max()).tobytes()

    def learn_collapsed(self, *acceptances: Acceptance) -> None:
        """Take answers of a collapse in, like ``learn``."""
        model = self._model()
        joint = model.collapsed * np.array([model.shares @ _kernel(one) for one in acceptances])
        numbers = np.arange(self.collapsed_answers + 1, self.collapsed_answers + len(acceptances) + 1)
        self.collapsed_answers += len(acceptances)
        kept, shares = _recursion(np.maximum(1 / (numbers + 1), 1 / COLLAPSE_MEMORY_ANSWERS))
        before = np.frombuffer(self.collapsed) if self.collapsed else model.collapsed
        weights = kept * before + (shares / joint.sum(axis=1)) @ joint @ _SMOOTHER
        self.collapsed = (weights / weights.sum()).tobytes()

    def nats(self, acceptance: Acceptance, other_ratio: float = 1.0, freak: float = FREAK) -> LogRatios:
        """What one answer says of a collapse.

        other_ratio: likelihood ratio of what else the answer says of a collapse of acceptance, such as its step time.
        freak: share of healthy answers that look like this one for a reason of their own.
        """
        healthy, collapsed, begun_here = self._model().likelihoods(_kernel(acceptance)).tolist()
        first = other_ratio * (BEGUN_SHARE * begun_here + (1 - BEGUN_SHARE) * collapsed)
        collapsed *= other_ratio
        healthy /= RARE_CONTENT
        return LogRatios(
            _log_ratio(collapsed, healthy + freak * collapsed),
            _log_ratio(first, healthy + freak * first),
        )

    def quantile(self, share: float) -> float:
        """Conditional acceptance below which this share of healthy answers has its content, 0..1."""
        return _quantile(self.weights, self.scores, share)

    def _weights(self) -> Array:
        return np.frombuffer(self.weights).reshape(len(OVERDISPERSIONS), len(GRID))

    def _model(self) -> _Model:
        return _model(self.weights, self.scores, self.collapsed, self.collapsed_answers, self.depth)


@lru_cache(maxsize=64)
def _model(weights: bytes, scores: bytes, collapses: bytes, collapsed_answers: int, depth: int | None) -> _Model:
    shares, healthy, usual = _healthy(weights, scores)
    collapsed = _collapse_prior(round(usual, 2))
    if collapses:
        prior = max(MIN_COLLAPSE_PRIOR, COLLAPSE_PRIOR_ANSWERS / (COLLAPSE_PRIOR_ANSWERS + collapsed_answers))
        collapsed = prior * collapsed + (1 - prior) * np.frombuffer(collapses)
    every = np.empty((3, *healthy.shape))
    np.multiply(shares[:, None], healthy, out=every[0])
    np.multiply(shares[:, None], collapsed, out=every[1])
    np.multiply(shares[:, None], begun(shares @ healthy, collapsed, depth), out=every[2])
    return _Model(shares, healthy, collapsed, every.reshape(3, -1))


@lru_cache(maxsize=64)
def _healthy(weights: bytes, scores: bytes) -> tuple[Array, Array, float]:
    """Shares of the overdispersions, healthy content for each, and the usual acceptance."""
    shares = np.exp(np.frombuffer(scores))
    shares /= shares.sum()
    seen = np.frombuffer(weights).reshape(len(OVERDISPERSIONS), len(GRID))
    usual = float(shares @ seen @ _SHARES)
    unseen = _content_prior(round(min(LOWEST_CONTENT, LOWEST_CONTENT_SHARE * usual), 2))
    return shares, (1 - UNSEEN) * seen + UNSEEN * unseen, usual


@lru_cache(maxsize=64)
def _quantile(weights: bytes, scores: bytes, share: float) -> float:
    shares, healthy, _ = _healthy(weights, scores)
    # A grid point stands for the contents half a step to each side.
    log_odds = float(np.interp(share, np.cumsum(shares @ healthy), _UPPER_EDGES))
    return 1 / (1 + math.exp(-log_odds))


def _recursion(rates: Array) -> tuple[float, Array]:
    """Shares, after answers that were learned one after the other at these rates, of what was known before them and of
    each of them."""
    kept = np.cumprod(1 - rates[::-1])[::-1]
    return float(kept[0]), rates * kept / (1 - rates)


def _log_ratio(above: float, below: float) -> float:
    return math.log((above if above > 1e-300 else 1e-300) / (below if below > 1e-300 else 1e-300))


_SMOOTHER = sum(share * np.eye(len(GRID), k=offset - 2) for offset, share in enumerate(_SMOOTHING))


class _Scale(NamedTuple):
    """What a kernel needs for each overdispersion and at each grid point, for a K and a length."""

    tail: Array
    """Rows: what an answer's own log likelihood, its accepted and its rejected positions, and 1, add to what the tail
    takes to its power."""
    height: Array


def _rows(weights: Array) -> Array:
    return np.tile(weights, (len(OVERDISPERSIONS), 1))


@lru_cache(maxsize=64)
def _steps_per_token(depth: int | None) -> Array:
    """Verify steps that a drafter takes for a token, at each grid point."""
    return np.array([1 / (1 + accepted_per_step(share, depth)) for share in ACCEPTANCES])


@lru_cache(maxsize=256)
def _scale(depth: int | None, length: int) -> _Scale:
    """length: of the answer, in ``LENGTHS`` of its logarithm."""
    per_token = _steps_per_token(depth)
    overdispersion = _overdispersion(math.exp(length / LENGTHS) * per_token)
    divergences = _DIVERGENCES[:, None, :] * (per_token / (TAIL * overdispersion))
    tail = np.concatenate([divergences.reshape(len(_DIVERGENCES), -1), np.ones((1, overdispersion.size))])
    return _Scale(tail, np.sqrt(per_token / overdispersion))


@lru_cache(maxsize=128)
def _kernel(acceptance: Acceptance) -> Array:
    """Likelihood of the answer for each overdispersion and at each grid point, up to a common factor.

    Saddlepoint density of a mean over n steps, sqrt(n) exp(-n D(observed, p) / overdispersion), with a heavier tail. D
    is the Kullback divergence of one step, n the steps that a drafter of acceptance p would have taken for these
    tokens (an unlucky answer takes more steps, which must not count as more evidence).
    """
    share, positions, tokens = min(MAX_SHARE, max(0.0, acceptance.share)), acceptance.positions, acceptance.tokens
    rejected = 1.0 - (0.0 if positions is None else share**positions)
    accepted = accepted_per_step(share, positions)
    itself = rejected * math.log1p(-share) + (accepted * math.log(share) if share > 0 else 0.0)
    tail, height = _scale(acceptance.depth, round(LENGTHS * math.log(tokens)))
    off = np.array((tokens * itself, tokens * accepted, tokens * rejected, 1.0)).dot(tail).reshape(height.shape)
    square = off * off
    fourth = square * square
    kernel: Array = height / (fourth * fourth * square)  # off^-TAIL
    return kernel


def _overdispersion(steps: Array) -> Array:
    """Steps that count as one, for each law and number of steps.

    The mean of n values of an AR(1) with correlation length m has 2m/n (1 - m/n (1 - exp(-n/m))) times the variance of
    one: the bracket is the share of the long answer's excess.
    """
    correlated = WANDER_STEPS / steps
    share = 1 + correlated * np.expm1(-1 / correlated)
    counted: Array = 1 + _CONSTANT_EXCESS + _WANDERING_EXCESS * share
    return counted
