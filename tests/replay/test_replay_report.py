"""``specbreaker report``: the page is true, safe, whole without the network, and the same for the same recording."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import shutil
import tempfile
import xml.etree.ElementTree as ET
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_samples import exchange, records_of, write_exchanges

from detector.advice import advise
from detector.judgement import JudgedAnswer, JudgedEpisode
from detector.observation import Observation, RequestFacts
from detector.stats.clocks import Clock
from detector.stats.cycle import CycleVerdict
from detector.stats.cycle_period import Period
from detector.verdict import Cause, Episode, Phase
from replay.report.charts import Chart, draw
from replay.report.command import report_command
from replay.report.findings import _utc, figures, find
from replay.report.markup import Markup, element, plain
from replay.report.page import page
from replay.report.words import CAUSES, REMEDIES, cycle
from replay.session.schema import (
    Backend,
    ContentMode,
    EventRecord,
    Record,
    SessionHeader,
    encode,
)
from replay.tune import by_depth, measure

DATA = Path(__file__).parents[1] / "data" / "sessions"
CHUNK_LOG = DATA / "chunklog_one_cycle.jsonl"


def report(*arguments: object) -> Result:
    return CliRunner().invoke(report_command, [str(argument) for argument in arguments])


@cache
def written(path: Path, series: str | None = None) -> str:
    return page(find(path, series), "0")


class Tags(HTMLParser):
    """Every tag with its attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: dict[str, set[str]] = {}
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        for name, value in attrs:
            self.attributes.setdefault(name, set()).add(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


# ---- what it says ----------------------------------------------------------------------------------------------------


def test_the_published_cycle_in_words() -> None:
    text = Tags(written(DATA / "cycle.csv", "dflash_n8")).text
    assert "10 requests of one backend. 115.9 tok/s: tokens by time" in text
    assert "1 episode." in text
    assert "Undetermined: e-value" in text
    assert "Not known: acceptance length, step time." in text


def test_a_chunk_log_shows_its_engine_and_no_command() -> None:
    text = Tags(written(CHUNK_LOG)).text
    assert "NVIDIA H200" in text
    assert "vllm 0.20.2" in text
    assert "acceptance_collapse: the drafter's tokens are no longer accepted." in text
    assert "Worth measuring: K=" in text
    assert "--max-num-batched-tokens" not in text, "a command may hold a key"


def test_an_episode_is_placed_inside_its_request() -> None:
    found = find(CHUNK_LOG)
    (one,) = found.judgement.episodes
    text = Tags(page(found, "0")).text
    assert one.episode.onset_step is not None
    assert f"{one.episode.onset_request}+{one.episode.onset_step}" in text


def test_a_healthy_recording_says_what_that_is_worth() -> None:
    text = Tags(written(DATA / "cycle.csv", "mtp_n3")).text
    assert "None was found. The alarm is set to at most one false one in 1000 requests" in text
    assert "Episodes" not in text


def test_every_cause_and_remedy_has_words() -> None:
    assert set(CAUSES) == set(Cause)
    assert len(REMEDIES) == 8


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (CycleVerdict(), "Undetermined: e-value 1 from 0 healthy runs"),
        (CycleVerdict(verdict="not_cyclic", runs=9), "No: the collapses come no more regularly"),
        (
            CycleVerdict(
                verdict="cyclic",
                clock=Clock.TOKENS,
                period=Period(estimate=2e4, low=19e3, high=21e3),
                e_value=50,
                runs=5,
            ),
            "Yes, every 2e+04 (1.9e+04-2.1e+04) generated tokens from onset to onset; e-value 50 from 5 healthy runs",
        ),
        (
            CycleVerdict(
                verdict="cyclic", e_value=50, runs=5, periods={Clock.REQUESTS: Period(estimate=10, low=9, high=11)}
            ),
            "Its clock cannot be told: from onset to onset, 10 requests (9-11).",
        ),
    ],
)
def test_the_cycle_in_words(verdict: CycleVerdict, said: str) -> None:
    assert said in cycle(verdict)


def test_how_to_see_it_again_quotes_the_file_for_a_shell(tmp_path: Path) -> None:
    odd = tmp_path / "a b;c.jsonl"
    shutil.copy(CHUNK_LOG, odd)
    text = Tags(written(odd)).text
    assert "specbreaker detect 'a b;c.jsonl'" in text
    assert "specbreaker replay convert 'a b;c.jsonl' --to session -o session.jsonl" in text
    assert "specbreaker replay compare session.jsonl replayed" in text


# ---- the same bytes, and nothing from elsewhere ----------------------------------------------------------------------


def test_the_same_recording_gives_the_same_bytes_wherever_it_lies(tmp_path: Path) -> None:
    copy = tmp_path / CHUNK_LOG.name
    shutil.copy(CHUNK_LOG, copy)
    for number, file in enumerate((CHUNK_LOG, CHUNK_LOG, copy)):
        result = report(file, "-o", tmp_path / f"{number}.html")
        assert result.exit_code == 0, result.output
    assert len({(tmp_path / f"{number}.html").read_bytes() for number in range(3)}) == 1


def test_the_page_asks_for_nothing_and_runs_nothing() -> None:
    for text in (written(CHUNK_LOG), written(DATA / "cycle.csv")):
        tags = Tags(text)
        assert not {"script", "link", "img", "iframe", "object", "embed", "a", "base", "form"} & {
            tag for tag, _ in tags.tags
        }
        assert not {"src", "href", "style", "srcset", "action"} & tags.attributes.keys()
        assert not any(name.startswith("on") for name in tags.attributes)
        assert "url(" not in text
        assert "@import" not in text


def test_the_policy_allows_the_one_style_and_nothing_else() -> None:
    text = written(CHUNK_LOG)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(value for value in Tags(text).attributes["content"] if value.startswith("default-src"))
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def test_recorded_text_stays_out_of_the_page(tmp_path: Path) -> None:
    secret = "the password is swordfish"
    exchanges = [
        exchange(index, 10.0 + index, mode=ContentMode.TEXT, messages=[{"role": "user", "content": secret}])
        for index in range(4)
    ]
    directory = write_exchanges(tmp_path, exchanges, mode=ContentMode.TEXT)
    (file,) = directory.glob("*.jsonl*")
    text = written(file)
    assert "swordfish" not in text
    assert "emulated" in text, "the model's name is no secret"


# ---- hostile names ---------------------------------------------------------------------------------------------------


def session(path: Path, name: str) -> Path:
    """A session in which everything that can be named is called so."""
    header = SessionHeader(
        tool_version=name, session_id="a", backends=(Backend(name=name, host_hash="h", engine_version=name),)
    )
    records: list[Record] = [header, EventRecord(at=1.0, kind=name)]
    for index in range(3):
        for record in records_of([exchange(index, 10.0 + index, model=name)]):
            if record.__class__.__name__ == "ResponseRecord":
                observation = msgspec.structs.replace(
                    record.observation,
                    backend=name,
                    facts=msgspec.structs.replace(record.observation.facts, model=name),
                    decode_tokens_per_second=100.0,
                    position_acceptance=(0.5,),
                    verify_steps=10,
                )
                record = msgspec.structs.replace(record, observation=observation)
            records.append(record)
    path.write_bytes(b"".join(encode(record).data for record in records))
    return path


HOSTILE = st.one_of(
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            '"><img src=x onerror=alert(1)>',
            "' onmouseover='alert(1)",
            "</title></svg></style><script>",
            "]]><!--",
            "&lt;b&gt;",
            "\u202egnp.exe",
            "a\x00b\x1b[31m",
        ]
    ),
    st.text(min_size=1, max_size=60).filter(lambda text: text.strip() == text and text.isprintable()),
)


@settings(max_examples=30, deadline=None)
@given(name=HOSTILE)
def test_names_are_text_and_never_markup(name: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        tame = Tags(page(find(session(Path(directory) / "s.jsonl", "tame")), "0"))
        wild = Tags(page(find(session(Path(directory) / "s.jsonl", name)), "0"))
    assert wild.tags == tame.tags
    assert plain(name) in wild.text
    assert not re.search("[\x00-\x08\u202a-\u202e]", wild.text)


@given(text=st.text(), attribute=st.text())
def test_an_element_holds_its_text_whatever_that_is(text: str, attribute: str) -> None:
    tags = Tags(element("p", text, title=attribute) + "<b>")
    assert tags.tags == [("p", ("title",)), ("b", ())]
    expected = plain(text).replace("\r", "\n")
    assert tags.text == expected


def test_markup_is_not_escaped_twice_and_none_is_nothing() -> None:
    assert element("p", element("b", "a&b"), None, ["c", Markup("<br>")]) == "<p><b>a&amp;b</b>c<br></p>"
    assert element("line", x1=1 / 3, class_=None) == '<line x1="0.33"/>'


NUMBERS = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300) | st.none()
COUNTS = st.integers(-(2**60), 2**60) | st.none()


@settings(max_examples=30, deadline=None)
@given(
    rate=NUMBERS,
    length=NUMBERS,
    seconds=NUMBERS,
    step=NUMBERS,
    tokens=COUNTS,
    depth=COUNTS,
    steps=COUNTS,
    began=NUMBERS,
)
def test_a_recording_with_any_numbers_is_a_page(
    rate: float | None,
    length: float | None,
    seconds: float | None,
    step: float | None,
    tokens: int | None,
    depth: int | None,
    steps: int | None,
    began: float | None,
) -> None:
    """What the detector refuses is refused; the report has no opinion of its own."""
    fields = {
        "decode_tokens_per_second": rate,
        "acceptance_length": length,
        "decode_seconds": seconds,
        "step_seconds": step,
        "completion_tokens": tokens,
        "num_speculative_tokens": depth,
        "verify_steps": steps,
    }
    answers = [
        JudgedAnswer(
            observation=msgspec.structs.replace(judged(index, None).observation, **fields),
            request=index,
            phase=Phase.HEALTHY,
            cause=None,
        )
        for index in range(4)
    ]
    assert figures(answer.observation for answer in answers).answers == 4
    levels, _ = measure(by_depth(answers, {}))
    assert len(levels) <= 1
    advise(levels)
    assert isinstance(_utc(began or 0.0), str)


# ---- charts ----------------------------------------------------------------------------------------------------------


def judged(index: int, rate: float | None, phase: Phase = Phase.HEALTHY) -> JudgedAnswer:
    observation = Observation(
        request_id=str(index),
        backend="b",
        facts=RequestFacts(route="chat"),
        started_unix=0.0,
        started=0.0,
        ended=1.0,
        decode_tokens_per_second=rate,
        verify_steps=100,
    )
    return JudgedAnswer(observation=observation, request=index, phase=phase, cause=None)


def chart(
    answers: list[JudgedAnswer], episodes: tuple[tuple[int, JudgedEpisode], ...] = (), reference: float | None = None
) -> str | None:
    return draw(
        Chart("Rate", "tok/s", lambda one: one.observation.decode_tokens_per_second, reference), answers, episodes
    )


@given(
    rates=st.lists(st.none() | st.floats(), min_size=1, max_size=40),
    phases=st.lists(st.sampled_from(Phase), min_size=40, max_size=40),
    reference=st.none() | st.floats(),
)
def test_any_values_give_a_drawing_within_its_frame(
    rates: list[float | None], phases: list[Phase], reference: float | None
) -> None:
    answers = [judged(index, rate, phase) for index, (rate, phase) in enumerate(zip(rates, phases, strict=False))]
    svg = chart(answers, reference=reference)
    known = [rate for rate in rates if rate is not None and math.isfinite(rate)]
    assert (svg is None) == (not known)
    if svg is None:
        return
    root = ET.fromstring(svg)
    for shape in root.iter():
        for name in ("x", "x1", "x2", "cx", "y", "y1", "y2", "cy"):
            if name in shape.attrib:
                assert -1 <= float(shape.attrib[name]) <= 961
    points = [one for one in root.iter() if (one.get("class") or "").startswith("point")]
    assert len(points) == len(known)


def test_many_answers_are_drawn_as_spreads() -> None:
    svg = chart([judged(index, 100.0 + index % 7) for index in range(5000)])
    assert svg is not None
    assert svg.count("class='spread'") + svg.count('class="spread"') <= 480
    assert "answers 0 to 10: 100 to 106 tok/s" in svg


def test_an_onset_is_drawn_at_its_step_and_phases_are_shaded() -> None:
    answers = [judged(index, 100.0, Phase.COLLAPSED if index in (2, 3) else Phase.HEALTHY) for index in range(5)]
    episode = JudgedEpisode(backend="b", episode=Episode(onset_request=1, onset_step=50, detected_request=2), began=0.0)
    svg = ET.fromstring(str(chart(answers, ((7, episode),), 90.0)))
    shapes = {one.get("class"): one for one in svg.iter() if one.get("class")}
    width = 960 - 56 - 8
    assert float(shapes["onset"].attrib["x1"]) == pytest.approx(56 + width * 1.5 / 5, abs=0.01)
    band = shapes["band collapsed"].attrib
    assert (float(band["x"]), float(band["width"])) == (
        pytest.approx(56 + width * 2 / 5, abs=0.01),
        pytest.approx(width * 2 / 5, abs=0.01),
    )
    assert "healthy" in shapes


# ---- the command -----------------------------------------------------------------------------------------------------


def test_what_detect_cannot_read_is_one_line_and_exits_2(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    for file in (empty, tmp_path / "absent"):
        result = report(file, "-o", tmp_path / "out.html")
        assert result.exit_code == 2
        assert str(file) in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out.html").exists()


def test_a_page_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    result = report(DATA / "cycle.csv", "-o", tmp_path / "absent" / "out.html")
    assert result.exit_code == 2
    assert "cannot be written: No such file or directory" in result.stderr


def test_a_session_without_an_answer_is_a_page(tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    file.write_bytes(encode(SessionHeader(tool_version="0", session_id="a")).data)
    assert "The recording holds no answer." in Tags(written(file)).text


def test_a_directory_of_one_session_is_read_as_detect_reads_it(tmp_path: Path) -> None:
    directory = write_exchanges(tmp_path / "recorded", [exchange(index, 10.0 + index) for index in range(4)])
    (file,) = directory.iterdir()
    whole = written(directory)
    assert "specbreaker detect recorded" in Tags(whole).text
    assert find(directory).sha256 == find(file).sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert written(file).replace(file.name, "recorded") == whole


def test_several_backends_have_charts_each(tmp_path: Path) -> None:
    records: list[Record] = [SessionHeader(tool_version="0", session_id="a")]
    for index in range(6):
        for record in records_of([exchange(index, 10.0 + index)]):
            if record.__class__.__name__ == "ResponseRecord":
                observation = msgspec.structs.replace(
                    record.observation, backend=("one", "two")[index % 2], decode_tokens_per_second=100.0
                )
                record = msgspec.structs.replace(record, observation=observation)
            records.append(record)
    file = tmp_path / "s.jsonl"
    file.write_bytes(b"".join(encode(record).data for record in records))
    text = written(file)
    assert text.count("<svg") == 2
    assert "Backend one" in text
    assert "Backend two" in text
