import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.verdict import Phase
from replay.emulator.engine import Engine, EngineRequest, FinishReason
from replay.emulator.scenario import load_scenario, parse_scenario
from replay.emulator.text import Speaker, encode

PROMPT = encode("Tell me about speculative decoding.")


def scenario(extra="", *, k=8, cycle='[[cycle]]\nphase = "healthy"\nlength = 1\nacceptance = 0.6\n'):
    return parse_scenario(f'name = "t"\nnum_speculative_tokens = {k}\n{extra}\n{cycle}', "test")


def asked(max_tokens=200, **options):
    return EngineRequest(prompt=PROMPT, max_tokens=max_tokens, speaker=Speaker(1), ignore_eos=True, **options)


def run(engine, requests, now=0.0):
    for request in requests:
        engine.add(request, now)
    while engine.has_work:
        plan = engine.plan_step(now)
        now += plan.seconds
        engine.finish_step(plan, now)
    return now


def rate(request):
    return (len(request.tokens) - 1) / (request.last_token_at - request.first_token_at)


def test_decode_rate_is_steps_per_second_times_acceptance_length():
    engine = Engine(load_scenario("published"))
    engine.cycle.force(Phase.HEALTHY)
    request = asked(10000)
    run(engine, [request])
    decode_seconds = request.last_token_at - request.first_token_at
    steps = len(request.accepted_per_step)
    assert decode_seconds / steps == pytest.approx(0.0164)
    tokens_per_step = (len(request.tokens) - 1) / steps
    assert rate(request) == pytest.approx(tokens_per_step / 0.0164)
    assert tokens_per_step == pytest.approx(3.6, rel=0.05)


def test_published_cycle_ten_requests():
    engine = Engine(load_scenario("published"))
    requests, now = [], 0.0
    for _ in range(10):
        requests.append(asked(2000))
        now = run(engine, requests[-1:], now)
    rates = [rate(request) for request in requests]
    assert rates[:5] == pytest.approx([219] * 5, rel=0.1)
    assert rates[5] == pytest.approx(103, rel=0.05)
    assert rates[6:9] == pytest.approx([61] * 3, rel=0.01)
    assert rates[9] == pytest.approx(212, rel=0.1)
    sixth = requests[5]
    assert [str(phase) for phase in sixth.phases] == ["healthy", "collapsed"]
    tokens_at_onset = 1 + sum(count + 1 for count in sixth.accepted_per_step[: sixth.first_collapsed_step])
    assert tokens_at_onset == pytest.approx(1126, abs=9)
    total = sum(len(request.tokens) for request in requests) / sum(
        len(request.tokens) / value for request, value in zip(requests, rates, strict=True)
    )
    assert total == pytest.approx(116, rel=0.03)


@pytest.mark.parametrize("name", ["published-tokens", "published-steps", "published-seconds"])
def test_other_clocks_give_the_same_first_cycle(name):
    engine = Engine(load_scenario(name))
    now, phases = 0.0, []
    for _ in range(10):
        request = asked(2000)
        now = run(engine, [request], now)
        phases.append("".join(str(phase)[0] for phase in request.phases))
    assert phases[:5] == ["h"] * 5
    assert phases[5] == "hc"
    assert phases[6:8] == ["c", "c"]
    assert phases[9].endswith("h")


def test_the_clock_of_tokens_counts_all_requests():
    cycle = (
        '[[cycle]]\nphase = "healthy"\nlength = 100\nacceptance = 0.0\n'
        '[[cycle]]\nphase = "collapsed"\nlength = 1000000\nacceptance = 0.0\n'
    )
    engine = Engine(scenario('clock = "tokens"', cycle=cycle))
    requests = [asked(80), asked(80)]
    run(engine, requests)
    for request in requests:
        assert request.first_collapsed_step == pytest.approx(50, abs=1)


def test_step_inflation_keeps_acceptance_and_slows_steps():
    engine = Engine(load_scenario("step-inflation"))
    engine.cycle.force(Phase.HEALTHY)
    healthy = asked()
    now = run(engine, [healthy])
    engine.cycle.force(Phase.COLLAPSED)
    slow = asked()
    run(engine, [slow], now)

    def step(request):
        return (request.last_token_at - request.first_token_at) / len(request.accepted_per_step)

    assert step(slow) / step(healthy) == pytest.approx(3.6)


def test_speculation_off_drafts_nothing_and_runs_at_the_targets_speed():
    engine = Engine(load_scenario("speculation-off"))
    engine.cycle.force(Phase.COLLAPSED)
    request = asked()
    run(engine, [request])
    assert request.accepted_per_step == []
    assert engine.counts.drafts == 0
    assert rate(request) == pytest.approx(1 / 0.00735)


def test_without_speculation_every_step_gives_one_token():
    engine = Engine(load_scenario("fallback"))
    request = asked()
    run(engine, [request])
    assert rate(request) == pytest.approx(130, rel=1e-3)
    assert engine.counts.accepted_per_position == []


@settings(max_examples=40, deadline=None)
@given(k=st.integers(0, 16), acceptance=st.floats(0, 1), max_tokens=st.integers(1, 120), seed=st.integers(0, 2**32))
def test_counts_agree_with_what_was_generated(k, acceptance, max_tokens, seed):
    cycle = f'[[cycle]]\nphase = "healthy"\nlength = 1\nacceptance = {acceptance:.6f}\n'
    engine = Engine(scenario(k=k, cycle=cycle), seed)
    request = asked(max_tokens)
    run(engine, [request])
    assert len(request.tokens) == max_tokens == engine.counts.generated_tokens
    assert request.finish_reason is FinishReason.LENGTH
    accepted = request.accepted_per_step
    assert engine.counts.drafts == len(accepted)
    assert engine.counts.draft_tokens == k * len(accepted)
    assert engine.counts.accepted_tokens == sum(accepted)
    assert engine.counts.accepted_per_position == [sum(count > place for count in accepted) for place in range(k)]
    if k:
        cut_off = 1 + len(accepted) + sum(accepted) - max_tokens
        assert 0 <= cut_off <= k


@settings(max_examples=25, deadline=None)
@given(others=st.lists(st.integers(1, 60), max_size=6), seed=st.integers(0, 100))
def test_what_runs_beside_a_request_does_not_change_its_draws(others, seed):
    alone = asked(100)
    run(Engine(scenario(), seed), [alone])
    beside = asked(100)
    run(Engine(scenario(), seed), [beside, *(asked(length) for length in others)])
    assert beside.accepted_per_step == alone.accepted_per_step
    assert beside.tokens == alone.tokens


def test_another_seed_gives_other_draws():
    first, second = asked(), asked()
    run(Engine(scenario(), 1), [first])
    run(Engine(scenario(), 2), [second])
    assert first.accepted_per_step != second.accepted_per_step


def test_a_batch_takes_longer_per_step_and_gives_more_in_all():
    extra = "[step_time]\nrequest_seconds = 0.001\ncontext_token_seconds = 0.00001"

    def with_batch(size):
        engine = Engine(scenario(cycle='[[cycle]]\nphase = "healthy"\nlength = 1\nacceptance = 0.6\n' + extra))
        requests = [asked() for _ in range(size)]
        seconds = run(engine, requests)
        return rate(requests[0]), size * 200 / seconds

    (alone, alone_total), (crowded, crowded_total) = with_batch(1), with_batch(8)
    assert crowded < alone
    assert crowded_total > 2 * alone_total


def test_requests_beyond_max_num_seqs_wait():
    engine = Engine(scenario("max_num_seqs = 2"))
    requests = [asked(20) for _ in range(3)]
    for request in requests:
        engine.add(request, 0.0)
    engine.plan_step(0.0)
    assert (len(engine.running), len(engine.waiting)) == (2, 1)
    run(engine, [], 0.0)
    assert requests[2].scheduled_at > 0
    assert all(request.finish_reason is FinishReason.LENGTH for request in requests)


def test_a_full_kv_cache_makes_requests_wait():
    engine = Engine(scenario("num_gpu_blocks = 1\nblock_size = 4"))
    engine.add(asked(10), 0.0)
    engine.add(asked(10), 0.0)
    engine.plan_step(0.0)
    assert engine.kv_cache_usage == 1.0
    assert len(engine.waiting) == 1


def test_an_aborted_request_gets_nothing_more():
    engine = Engine(scenario())
    gone, staying = asked(), asked()
    engine.add(gone, 0.0)
    engine.add(staying, 0.0)
    engine.finish_step(engine.plan_step(0.0), 0.1)
    plan = engine.plan_step(0.1)
    engine.abort(gone)
    steps = engine.finish_step(plan, 0.2)
    assert [step.request for step in steps] == [staying]
    assert len(gone.tokens) == 1
    assert gone.finish_reason is FinishReason.ABORT
    assert engine.running == [staying]


def test_a_prompt_seen_before_is_cached_in_whole_blocks():
    engine = Engine(scenario("block_size = 4"))
    first, second, other = asked(2), asked(2), asked(2)
    other.prompt = encode("Something else entirely, and long enough for blocks.")
    now = run(engine, [first])
    now = run(engine, [second], now)
    run(engine, [other], now)
    assert first.cached_tokens == other.cached_tokens == 0
    assert second.cached_tokens == (len(PROMPT) - 1) // 4 * 4
    assert engine.counts.cached_tokens == second.cached_tokens
    assert second.first_token_at - second.queued_at < first.first_token_at - first.queued_at
    assert engine.reset_prefix_cache()
    again = asked(2)
    engine.add(again, now)
    engine.plan_step(now)
    assert again.cached_tokens == 0
    assert not engine.reset_prefix_cache()


def test_stop_tokens_and_min_tokens():
    free = asked(50)
    run(Engine(scenario()), [free])
    stop = free.tokens[10]
    place = free.tokens.index(stop)
    stopped = asked(50, stop_token_ids=frozenset({stop}))
    run(Engine(scenario()), [stopped])
    assert stopped.tokens == free.tokens[: place + 1]
    assert (stopped.finish_reason, stopped.stop_reason) == (FinishReason.STOP, stop)
    held = asked(50, stop_token_ids=frozenset({stop}), min_tokens=50)
    run(Engine(scenario()), [held])
    assert held.tokens == free.tokens


def test_a_content_class_is_found_by_its_text():
    cycle = (
        '[[cycle]]\nphase = "healthy"\nlength = 1\nacceptance = 0.5\n'
        '[[content]]\nname = "code"\nacceptance_factor = 2\nmatch = "```"\n'
    )
    engine = Engine(scenario(cycle=cycle))
    code, prose = asked(50), asked(50)
    engine.add(code, 0.0, content="fix ```this```")
    engine.add(prose, 0.0, content="a story")
    run(engine, [])
    assert (code.content, prose.content) == ("code", "")
    assert set(code.accepted_per_step) == {8}
    assert sum(prose.accepted_per_step) / len(prose.accepted_per_step) < 3
