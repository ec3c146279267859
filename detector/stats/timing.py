"""The healthy law of a time per step (or per token), given load and context, and the evidence of one answer against it.

log seconds = intercept + slopes x covariates + noise, by a Kalman filter (recursive least squares with a prior and a
slowly moving intercept); noise of variance a + b/length, heavy-tailed; and a few answers with a stall of some seconds.
"""

from __future__ import annotations

import math

import msgspec

Vector = tuple[float, float, float]
Vector5 = tuple[float, float, float, float, float]
Triangle = tuple[float, float, float, float, float, float]

PRIOR_SLOPES = (0.3, 0.5)
"""Of log requests in flight, and of log(1 + context / ``CONTEXT_SCALE``), before anything is learned."""
PRIOR_VARIANCES = (30.0**2, 0.35**2, 0.5**2)
DRIFT = (1e-5, 1e-6, 1e-6)
"""Variance by which intercept and slopes may move from one answer to the next."""
CONTEXT_SCALE = 20_000.0
MIN_SPREAD = 0.04
"""Nats; a few answers that happen to agree do not make a narrower reference than this."""
MAX_SPREAD = 0.3
"""No healthy backend is taken to be noisier than this: a collapse that went unseen must not teach otherwise."""
FIRST_ANSWERS = 3
"""As many as the line has numbers: they lie on it whatever their noise is."""
PRIOR_ANSWERS = 4.0
"""Weight of ``MIN_SPREAD`` in the learned variance, in answers."""
REFERENCE_TOKENS = 100.0
"""Length at which b/length is b."""
MEMORY = 0.998
"""Weight that the variance keeps of what it knew, at each answer."""
WIDE_CONTENT = 1.0
"""Nats by which content may slow a rate while little is known of it: A differs by three times in a healthy run."""
ONE_CONTENT_SPREAD = 0.08
"""First answers that differ by less than this are of one kind of content."""
MAX_STALL_SHARE = 0.5
MAX_STALL = 5.0
"""Nats; a longer stall counts as this one."""
NOISE_SPREADS, MIN_RANGE = 2.0, 0.5
"""A slowdown is at least this many spreads, and the range of slowdowns at least this wide, in nats."""
TRUSTED_ANSWERS = 40
"""The first answers make the reference as they are; later ones count by how likely they are not of a slow backend."""
SLOW_SHARE = 0.5
"""Odds of a slow backend among answers that raised no alarm."""
DRAG_SHARE, DRAG_ANSWERS, MAX_DRAG = 0.5, 4.0, 0.3
"""Share of collapsed answers whose steps are slower as well, before any is seen, the answers that this counts for, and
by how many nats at most: the published ones' were by 0.13, those of captures on an H200 by nothing."""
MAX_SEEN_DRAG_SHARE = 0.7
"""Weight on collapses that slow the steps like those seen, after many of them."""
DRAG_MEMORY = 0.97
"""Weight that it keeps at each answer of a collapse."""
DRAG_FREAK = 0.02
"""Share of healthy answers that are as slow as that for a reason of their own; bounds what the step time can add."""
STALL_SHARE, STALL_ANSWERS = 0.005, 200.0
"""Share of healthy answers with a stall, before any is learned, and the answers that this counts for."""
STALL_SHAPE, STALL_SECONDS = 3.0, 4.0
"""Lomax law of the seconds of a stall before any is learned: mean 2 s."""
ASSUMED_SECONDS = 10.0
"""Decode time of an answer whose length is unknown, against which a stall is measured."""


class Timed(msgspec.Struct, frozen=True, gc=False):
    """One time, with what explains it."""

    log_seconds: float
    """Per step or per token."""
    in_flight: int
    context_tokens: float
    tokens: float | None
    """Length of the answer, None where it is unknown."""
    units: float | None
    """Steps or tokens that the time is a mean over, None where it is unknown."""


class Compared(msgspec.Struct, frozen=True, gc=False):
    """One time beside what the law expects of it; nats."""

    timed: Timed
    expected: float
    """Log seconds."""
    slower: float
    noise: float
    """Variance of one answer's noise."""
    spread: float
    """Standard deviation of ``slower``: noise, and what is not known of the line."""
    load: float
    context: float
    """Covariates of the line."""
    shortness: float
    """Covariate of the noise."""


class Alternative(msgspec.Struct, frozen=True):
    """What a slowdown and its rivals look like, in nats of time."""

    least: float
    most: float
    """A slow backend is slower by anything between, equally likely."""
    content: float = 0.0
    """Healthy content never seen may be slower by up to this; 0: content does not matter."""
    content_share: float = 0.0
    freak: float = 1 / 4000
    """Share of healthy answers that are as slow as that for a reason of their own; bounds one answer's evidence."""


STEP = Alternative(math.log(1.5), 2.0, freak=1 / 2000)
RATE = Alternative(0.5, 1.5, content=0.5, content_share=0.4)


class TimeLaw(msgspec.Struct, kw_only=True):
    """Healthy times of one kind."""

    mean: Vector = (0.0, *PRIOR_SLOPES)
    covariance: Triangle = (PRIOR_VARIANCES[0], 0.0, 0.0, PRIOR_VARIANCES[1], 0.0, PRIOR_VARIANCES[2])
    """Upper triangle, by rows."""
    answers: int = 0
    moments: Vector5 = (
        PRIOR_ANSWERS,
        PRIOR_ANSWERS,
        2 * PRIOR_ANSWERS,
        PRIOR_ANSWERS * MIN_SPREAD**2,
        PRIOR_ANSWERS * MIN_SPREAD**2,
    )
    """Sums of weight, u, u^2, residual^2 and u residual^2, where u = reference / length."""
    noise: Vector = (MIN_SPREAD**2, 0.0, MIN_SPREAD**2)
    """What follows from the moments: a and b of the variance a + b u, and the mean variance."""
    stalls: float = STALL_SHARE * STALL_ANSWERS
    stall_chances: float = STALL_ANSWERS
    """Requests in flight, summed over answers: each may have interrupted the answer, with a prefill for one."""
    stall_shape: float = STALL_SHAPE
    stall_seconds: float = STALL_SECONDS
    drags: float = DRAG_SHARE * DRAG_ANSWERS
    drag_chances: float = DRAG_ANSWERS
    """Answers of collapses of acceptance, and those of them with slower steps; with forgetting."""
    drag_nats: float = MAX_DRAG / 2
    """Mean of by how much these were slower."""

    def predict(self, in_flight: int, context_tokens: float = 0.0) -> float:
        """Log seconds expected at this load and context."""
        intercept, load, context = self.mean
        return intercept + load * math.log(max(1, in_flight)) + context * math.log1p(context_tokens / CONTEXT_SCALE)

    def compare(self, timed: Timed) -> Compared:
        """How much slower than expected a time is, and how far that may be off."""
        load, context = math.log(max(1, timed.in_flight)), math.log1p(timed.context_tokens / CONTEXT_SCALE)
        intercept, load_slope, context_slope = self.mean
        expected = intercept + load_slope * load + context_slope * context
        p00, p01, p02, p11, p12, p22 = self.covariance
        uncertainty = p00 + load * (2 * p01 + load * p11 + 2 * context * p12) + context * (2 * p02 + context * p22)
        shortness = _shortness(timed)
        noise = self._noise(shortness)
        spread = math.sqrt(noise + max(0.0, uncertainty))
        return Compared(timed, expected, timed.log_seconds - expected, noise, spread, load, context, shortness)

    def learn(self, timed: Timed, alternative: Alternative) -> None:
        """Take one healthy answer in. ``alternative``: what it would be if it were not."""
        compared = self.compare(timed)
        trust = self._trust(compared, alternative)
        weight, noise = 1.0, MAX_SPREAD**2  # the first do not show how much answers differ
        if self.answers >= FIRST_ANSWERS:
            self._learn_noise(compared, trust)
            noise = max(compared.noise, self._noise(compared.shortness))  # one that is far off shows how noisy they are
            # Huber's weight: an answer far off moves the line no more than one at 2.5 spreads.
            weight = trust * min(1.0, 2.5 * compared.spread / max(abs(compared.slower), 1e-12))
        self._learn_line(compared, noise / weight)
        self.answers += 1

    def _trust(self, compared: Compared, alternative: Alternative) -> float:
        """How likely an answer that raised no alarm is not of a slow backend."""
        if self.answers < TRUSTED_ANSWERS or compared.slower <= 0:
            return 1.0
        return 1 / (1 + SLOW_SHARE * math.exp(self.slow_nats(compared, alternative)))

    def nats(self, timed: Timed, alternative: Alternative) -> float:
        """Log likelihood ratio of a slow backend against a healthy one."""
        return self.slow_nats(self.compare(timed), alternative)

    def stall_likelihood(self, compared: Compared) -> float:
        """Density, in nats, of a healthy answer that is as slow as this one because of a stall."""
        return self._stall_share(compared) * self._stall_density(compared, max(compared.slower, MIN_SPREAD))

    def drag_ratio(self, compared: Compared) -> float:
        """Likelihood ratio of an answer of a collapsed drafter against a healthy one, by its step time."""
        return self._drag_ratio(self._drag_against_none(compared))

    def _drag_ratio(self, against_none: float) -> float:
        share = self.drags / self.drag_chances
        return 1 - share + share * against_none

    def learn_drag(self, timed: Timed) -> None:
        """Take one answer of a collapse of acceptance in."""
        compared = self.compare(timed)
        against_none = self._drag_against_none(compared)
        dragged = self.drags / self.drag_chances * against_none / self._drag_ratio(against_none)
        slower = min(MAX_DRAG, max(0.0, compared.slower))
        self.drags = DRAG_MEMORY * self.drags + dragged
        self.drag_nats += dragged / self.drags * (slower - self.drag_nats)
        self.drag_chances = DRAG_MEMORY * self.drag_chances + 1

    def _drag_against_none(self, compared: Compared) -> float:
        slower, spread = compared.slower, compared.spread
        share = self._stall_share(compared)
        body = (1 - share) * t4_density(slower / spread) / spread
        healthy = body + share * self._stall_density(compared, slower)
        drag = (t4_cumulative(slower / spread) - t4_cumulative((slower - MAX_DRAG) / spread)) / MAX_DRAG
        seen = MAX_SEEN_DRAG_SHARE * (1 - DRAG_ANSWERS / self.drag_chances)
        drag = (1 - seen) * drag + seen * t4_density((slower - self.drag_nats) / spread) / spread
        return drag / (healthy + DRAG_FREAK * drag + 1e-300)

    def slow_nats(self, compared: Compared, alternative: Alternative) -> float:
        """Log likelihood ratio of a slow backend against a healthy one."""
        spread = compared.spread
        # What healthy answers differ by anyway is no slowdown, however long a block of such answers lasts.
        least = min(max(alternative.least, NOISE_SPREADS * spread), alternative.most - MIN_RANGE)
        # Beyond both ends the ratio of two tails says nothing: evidence stays what it is there.
        slower = max(0.0, min(compared.slower, max(alternative.most - spread, (least + alternative.most) / 2)))
        body = t4_density(slower / spread) / spread
        if alternative.content_share:
            content = WIDE_CONTENT if self._content_is_new() else alternative.content
            reach = normal_cumulative(slower / spread) - normal_cumulative((slower - content) / spread)
            body += alternative.content_share * (reach / content - body)
        share = self._stall_share(compared)
        healthy = (1 - share) * body + share * self._stall_density(compared, slower)
        reach = t4_cumulative((slower - least) / spread) - t4_cumulative((slower - alternative.most) / spread)
        slow = max(reach / (alternative.most - least), 1e-12)
        return math.log(slow / (healthy + alternative.freak * slow))

    def _content_is_new(self) -> bool:
        """Too few answers to know all content, and too different for content of one kind."""
        weight, _, _, squares, _ = self.moments
        return self.answers < TRUSTED_ANSWERS and squares > weight * ONE_CONTENT_SPREAD**2

    def _noise(self, shortness: float) -> float:
        """Variance a + b u of one answer's noise."""
        a, b, mean = self.noise
        # A slope through a few points promises too much for long answers.
        return max(MIN_SPREAD**2 if self.answers >= TRUSTED_ANSWERS else mean, a + b * shortness)

    def _learn_line(self, compared: Compared, noise: float) -> None:
        """One step of the Kalman filter; what is unknown never exceeds what it was at the start."""
        load, context = compared.load, compared.context
        p00, p01, p02, p11, p12, p22 = self.covariance
        p00 = min(p00 + DRIFT[0], PRIOR_VARIANCES[0])
        p11 = min(p11 + DRIFT[1], PRIOR_VARIANCES[1])
        p22 = min(p22 + DRIFT[2], PRIOR_VARIANCES[2])
        px0 = p00 + p01 * load + p02 * context
        px1 = p01 + p11 * load + p12 * context
        px2 = p02 + p12 * load + p22 * context
        total = px0 + px1 * load + px2 * context + noise
        gain0, gain1, gain2 = px0 / total, px1 / total, px2 / total
        intercept, load_slope, context_slope = self.mean
        self.mean = (
            intercept + gain0 * compared.slower,
            # More load or context never makes a step faster; a few answers of different content may look as if.
            max(0.0, load_slope + gain1 * compared.slower),
            max(0.0, context_slope + gain2 * compared.slower),
        )
        self.covariance = (
            p00 - gain0 * px0,
            p01 - gain0 * px1,
            p02 - gain0 * px2,
            p11 - gain1 * px1,
            p12 - gain1 * px2,
            p22 - gain2 * px2,
        )

    def _learn_noise(self, compared: Compared, trust: float) -> None:
        slower, spread, stalled = compared.slower, compared.spread, 0.0
        self.stall_chances += compared.timed.in_flight
        if slower > 0:
            share = self._stall_share(compared)
            as_stall = share * self._stall_density(compared, slower)
            stalled = as_stall / (as_stall + (1 - share) * t4_density(slower / spread) / spread)
            self.stalls += stalled
            self.stall_shape += stalled
            self.stall_seconds += stalled * _expected_seconds(compared) * math.expm1(min(slower, MAX_STALL))
        square = (1 - stalled) * min(slower * slower, 12 * spread * spread)
        u = compared.shortness
        weight, us, uus, squares, u_squares = self.moments
        self.moments = (
            MEMORY * weight + trust,
            MEMORY * us + trust * u,
            MEMORY * uus + trust * u * u,
            MEMORY * squares + trust * square,
            MEMORY * u_squares + trust * u * square,
        )
        self.noise = _noise_law(self.moments)

    def _stall_share(self, compared: Compared) -> float:
        return min(MAX_STALL_SHARE, self.stalls / self.stall_chances * compared.timed.in_flight)

    def _stall_density(self, compared: Compared, slower: float) -> float:
        """Density of a slowdown in nats when it is a stall: its seconds follow a Lomax law."""
        if slower <= 0:
            return 0.0
        expected = _expected_seconds(compared)
        seconds = expected * math.expm1(slower)
        shape, scale = self.stall_shape, self.stall_seconds
        tail: float = (1 + seconds / scale) ** (-shape - 1)
        return shape / scale * tail * expected * math.exp(slower)


def _noise_law(moments: Vector5) -> Vector:
    """a and b of the variance a + b u: least squares on the squared residuals; and the mean variance. Within bounds."""
    weight, u, uu, r, ur = moments
    determinant = weight * uu - u * u
    a, b = r / weight, 0.0
    if determinant > 1e-9 * weight * uu:
        slope = (weight * ur - u * r) / determinant
        if slope > 0:
            a, b = (uu * r - u * ur) / determinant, slope
            if a < 0:
                a, b = 0.0, ur / uu
    mean = max(MIN_SPREAD**2, min(r / weight, MAX_SPREAD**2))
    return min(a, MAX_SPREAD**2), min(b, MAX_SPREAD**2), mean


def _expected_seconds(compared: Compared) -> float:
    units = compared.timed.units
    return ASSUMED_SECONDS if units is None else units * math.exp(compared.expected)


def _shortness(timed: Timed) -> float:
    """u of the variance a + b u: neighbours and pauses disturb a short answer more than a long one."""
    if timed.tokens is None:
        return 1.0
    return REFERENCE_TOKENS * timed.in_flight / max(timed.tokens, 1.0)


def t4_density(x: float) -> float:
    """Density of Student's t with 4 degrees of freedom."""
    w = 1 + x * x / 4
    return 0.375 / (w * w * math.sqrt(w))


def t4_cumulative(x: float) -> float:
    """Distribution function of Student's t with 4 degrees of freedom, in closed form."""
    w = x / math.sqrt(x * x + 4)
    return 0.5 + w * (0.75 - 0.25 * w * w)


def normal_cumulative(x: float) -> float:
    """Distribution function of the normal law."""
    return 0.5 * math.erfc(-x / math.sqrt(2))
