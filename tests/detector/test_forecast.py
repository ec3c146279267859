"""What lies ahead: the next request at every answer, and the rest when somebody asks."""

from watch_traffic import CHAT, DEAD, Clock

from detector.outlook import FORECAST_SECONDS, FORECAST_TOKENS
from detector.watch import Watch, WatchConfig


def cycles(count):
    clock = Clock()
    return [clock.answer(content, tokens=600) for content in ([CHAT] * 6 + [DEAD] * 3) * count]


def test_asking_changes_nothing_and_not_asking_loses_nothing():
    asked, quiet = Watch(WatchConfig()), Watch(WatchConfig())
    forecasts = []
    for answer in cycles(8):
        verdict = asked.update(answer)
        forecasts.append((verdict.forecast, asked.forecast))
        quiet.update(answer)
    assert asked.snapshot() == quiet.snapshot()
    assert asked.forecast == quiet.forecast == forecasts[-1][1]
    known = [(near, far) for near, far in forecasts if near is not None]
    assert len(known) > 40
    for near, far in known:
        assert (near.next_request_probability, near.clock) == (far.next_request_probability, far.clock)


def test_nothing_is_forecast_before_collapses_were_seen():
    watch = Watch(WatchConfig())
    for answer in cycles(1):
        watch.update(answer)
    assert watch.forecast is None
    assert watch.verdict.forecast is None


def test_more_time_is_more_risk():
    watch = Watch(WatchConfig())
    *before, _, _ = cycles(12)
    for answer in before[: 9 * 10 + 2]:
        watch.update(answer)
    forecast = watch.forecast
    assert (forecast.tokens, forecast.seconds) == (FORECAST_TOKENS, FORECAST_SECONDS)
    # Two of six healthy answers have come: the next one is safe, the minute to come is not.
    assert forecast.next_request_probability < 0.1
    assert forecast.next_request_probability <= forecast.within_tokens <= forecast.within_seconds
    assert forecast.within_seconds > 0.9
