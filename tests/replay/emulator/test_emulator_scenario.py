import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.verdict import Phase
from replay.emulator.cycle import Cycle
from replay.emulator.scenario import (
    CyclePart,
    ScenarioError,
    acceptance_length,
    builtin_scenarios,
    conditional_acceptance,
    load_scenario,
    parse_scenario,
)

MINIMAL = '[[cycle]]\nphase = "healthy"\nlength = 1\nacceptance = 0.5\n'


@pytest.mark.parametrize("name", builtin_scenarios())
def test_builtin_scenarios_carry_their_name(name):
    assert load_scenario(name).name == name


def test_the_named_scenarios_are_there():
    expected = {"published", "published-tokens", "published-seconds", "published-steps", "h200", "healthy"}
    assert expected | {"fallback", "step-inflation", "speculation-off"} == set(builtin_scenarios())


def test_a_file_of_the_user_is_loaded(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\nnum_speculative_tokens = 4\n' + MINIMAL)
    assert load_scenario(str(file)).num_speculative_tokens == 4


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name = ", "mine.toml"),
        ('name = "x"\ncycle = []\n', "$.cycle"),
        ('name = "x"\nnum_speculative_tokens = 17\n' + MINIMAL, "$.num_speculative_tokens"),
        ('name = "x"\ncolour = 1\n' + MINIMAL, "colour"),
        ('name = "x"\n' + MINIMAL.replace("length = 1", "length = 0"), "$.cycle[0].length"),
        ('name = "x"\n' + MINIMAL.replace("healthy", "fine"), "$.cycle[0].phase"),
        ('name = "x"\n' + MINIMAL + "acceptance_length = 2\n", "exactly one of acceptance"),
        ('name = "x"\n' + MINIMAL.replace("0.5", "[0.5, 0.4]"), "one value for each"),
        ('name = "x"\n' + MINIMAL.replace("acceptance = 0.5", "acceptance_length = 9.5"), "cannot exceed"),
    ],
)
def test_a_bad_file_is_told_in_one_line_that_names_the_place(tmp_path, text, told):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ScenarioError) as caught:
        load_scenario(str(file))
    assert told in str(caught.value)
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ScenarioError, match="published-tokens"):
        load_scenario("no-such-scenario")


@settings(max_examples=50)
@given(k=st.integers(1, 16), share=st.floats(0, 1))
def test_the_acceptance_length_asked_for_is_what_results(k, share):
    wanted = 1 + share * k
    part = CyclePart(phase="healthy", length=1, acceptance_length=wanted)
    assert acceptance_length(conditional_acceptance(part, k)) == pytest.approx(wanted, abs=1e-6)


def test_positions_of_the_cycle_and_overrides():
    scenario = parse_scenario(
        'name = "x"\n' + MINIMAL + '[[cycle]]\nphase = "collapsed"\nlength = 2.5\nacceptance = 0.0\n', "test"
    )
    cycle = Cycle(scenario)
    phases = [str(cycle.at(position).phase) for position in (0, 0.999, 1, 3.49, 3.5, 4.5)]
    assert phases == ["healthy", "healthy", "collapsed", "collapsed", "healthy", "collapsed"]
    cycle.force(Phase.COLLAPSED)
    assert cycle.at(0).phase == "collapsed"
    cycle.force(None)
    cycle.override_acceptance(0.25)
    assert cycle.at(0).acceptance == cycle.at(1).acceptance == (0.25,) * 8
    cycle.override_acceptance(None)
    assert cycle.at(0).acceptance == (0.5,) * 8
    with pytest.raises(ValueError, match="no recovering part"):
        cycle.force(Phase.RECOVERING)
    for bad in (1.5, [0.5] * 7, [0.5] * 7 + [-0.1]):
        with pytest.raises(ValueError, match="from 0 to 1"):
            cycle.override_acceptance(bad)


def test_content_classes_move_acceptance():
    scenario = parse_scenario(
        'name = "x"\n' + MINIMAL + '[[content]]\nname = "easy"\nacceptance_factor = 3\nmatch = "```"\n', "test"
    )
    cycle = Cycle(scenario)
    assert cycle.at(0, "easy").acceptance == (1.0,) * 8
    assert cycle.at(0, "").acceptance == (0.5,) * 8
