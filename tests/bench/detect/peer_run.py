"""Calibrate and score the peers; runs in their own environment and prints rows and costs as JSON.

usage: python -m tests.bench.detect.peer_run [--quick] [--scenarios NAME,...] [--peer NAME]
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings

import msgspec

from tests.bench.detect.calibrate import calibrate
from tests.bench.detect.peers import PEERS, Rates, alarms_of
from tests.bench.detect.results import Cost, PeerResult, Row
from tests.bench.detect.scenarios import CORE, SCENARIOS
from tests.bench.detect.scoring import Score, score
from tests.bench.detect.series import CALIBRATION_SCENARIO, CALIBRATION_SEEDS, FULL, QUICK, Series, Size, series_of
from tests.bench.detect.simulator import simulate

MEAN_REQUESTS_BETWEEN_FALSE_ALARMS = 1000.0


def rates_of(series: Series) -> Rates:
    """Tokens per second of each answer, as far as they are known."""
    return [None if answer.no_rate else answer.tokens_per_second for answer in series.answers]


def calibration_rates(size: Size) -> list[Rates]:
    """Healthy traffic of its own seeds."""
    scenario = SCENARIOS[CALIBRATION_SCENARIO]
    runs = [simulate(scenario, size.null_requests, seed) for seed in CALIBRATION_SEEDS]
    return [rates_of(Series(scenario, answers, 0, 0)) for answers in runs]


def cost_of(name: str, threshold: float, arl: float, rates: Rates) -> Cost:
    """CPU time per answer, warm-up and refits included."""
    begin = time.process_time()
    alarms_of(name, threshold, rates)
    seconds = time.process_time() - begin
    return Cost(
        detector=name,
        microseconds_per_request=seconds / len(rates) * 1e6,
        threshold=threshold,
        calibrated_arl=arl,
    )


def score_peers(names: list[str], scenarios: list[str], size: Size) -> PeerResult:
    """All figures of these peers."""
    calibration = calibration_rates(size)
    costs = []
    for name in names:
        threshold, arl = calibrate(name, calibration, MEAN_REQUESTS_BETWEEN_FALSE_ALARMS)
        costs.append(cost_of(name, threshold, arl, calibration[0]))
        print(f"peer_run: {name}: threshold {threshold:.3g}, {arl:.0f} requests", file=sys.stderr, flush=True)
    rows = []
    for scenario in scenarios:
        scores = {name: Score() for name in names}
        for series in series_of(SCENARIOS[scenario], size):
            rates, degraded = rates_of(series), [answer.degraded for answer in series.answers]
            for cost in costs:
                alarms = alarms_of(cost.detector, cost.threshold or 0.0, rates)
                scores[cost.detector] += score(
                    degraded, alarms, begin=series.begin, workers=series.scenario.workload.workers
                )
        rows += [Row(detector=name, scenario=scenario, score=one) for name, one in scores.items()]
    return PeerResult(rows=rows, costs=costs)


def main() -> None:
    """Print the figures of the peers."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.detect.peer_run")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--scenarios", default=",".join(scenario.name for scenario in CORE))
    parser.add_argument("--peer", action="append", choices=PEERS)
    args = parser.parse_args()
    # hmmlearn says through both of these that a fit did not converge; it is used as it is.
    warnings.filterwarnings("ignore")
    logging.getLogger("hmmlearn").setLevel(logging.CRITICAL)
    result = score_peers(args.peer or list(PEERS), args.scenarios.split(","), QUICK if args.quick else FULL)
    sys.stdout.buffer.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
