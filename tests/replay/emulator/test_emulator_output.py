import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.emulator.engine import EngineRequest, FinishReason
from replay.emulator.output import ChoiceOutput, ChoiceStream, Detokenizer, EngineDeadError, OutputCollector
from replay.emulator.text import Speaker, encode


def news(text="x", tokens=(5,), finish=None, choice=0):
    return ChoiceOutput(choice=choice, text=text, tokens=list(tokens), first_position=0, finish_reason=finish)


@settings(max_examples=200)
@given(
    text=st.text(alphabet="abé→ \n", min_size=1, max_size=60),
    stop=st.lists(st.text(alphabet="ab ", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(1, 5), min_size=1),
    include=st.booleans(),
)
def test_pieces_add_up_to_the_text_before_the_first_stop_string(text, stop, cuts, include):
    ids = encode(text)
    detokenizer = Detokenizer(stop, include_stop=include)
    sent, start, stopped, cut = "", 0, None, 0
    while start < len(ids) and stopped is None:
        size = cuts[cut % len(cuts)]
        cut += 1
        finished = start + size >= len(ids)
        delta, stopped = detokenizer.update(ids[start : start + size], finished=finished)
        sent += delta
        start += size
        assert text.startswith(sent)
    if stopped is None:
        assert sent == text
        assert not any(entry in text for entry in stop)
    else:
        assert sent.endswith(stopped) if include else text.startswith(sent + stopped)
        before = sent.removesuffix(stopped) if include else sent
        assert not any(entry in before for entry in stop)


def test_a_stop_string_before_min_tokens_does_not_count():
    detokenizer = Detokenizer(["a"], min_tokens=3)
    assert detokenizer.update(encode("a")[:1], finished=False) == ("a", None)


def test_a_character_split_over_tokens_comes_out_whole():
    ids = encode("日")
    assert len(ids) == 3
    detokenizer = Detokenizer([])
    assert [detokenizer.update([token], finished=False)[0] for token in ids] == ["", "", "日"]


async def test_news_is_merged_until_it_is_taken():
    collector = OutputCollector(1, final_only=False)
    collector.put(news("one", [1, 2]))
    collector.put(news(" two", [3], FinishReason.LENGTH))
    (output,) = await collector.get()
    assert (output.text, output.tokens, output.finish_reason) == ("one two", [1, 2, 3], FinishReason.LENGTH)
    assert await collector.get() == []


async def test_choices_are_merged_apart():
    collector = OutputCollector(2, final_only=False)
    collector.put(news("a", choice=0))
    collector.put(news("b", choice=1))
    collector.put(news("c", choice=0))
    assert [(output.choice, output.text) for output in await collector.get()] == [(0, "ac"), (1, "b")]


async def test_a_final_only_consumer_waits_for_the_end():
    collector = OutputCollector(1, final_only=True)
    waiting = asyncio.ensure_future(collector.get())
    collector.put(news("a"))
    await asyncio.sleep(0)
    assert not waiting.done()
    collector.put(news("b", finish=FinishReason.STOP))
    (output,) = await waiting
    assert output.text == "ab"


async def test_a_dead_engine_reaches_a_waiting_consumer():
    collector = OutputCollector(1, final_only=False)
    waiting = asyncio.ensure_future(collector.get())
    await asyncio.sleep(0)
    collector.fail(EngineDeadError())
    with pytest.raises(EngineDeadError, match="EngineCore encountered an issue"):
        await waiting


def test_what_is_untaken_keeps_a_lockstep_engine_waiting():
    collector = OutputCollector(1, final_only=False)
    assert not collector.untaken
    collector.put(news())
    assert collector.untaken
    collector.writing = True
    assert not collector.untaken
    collector.writing, collector.closed = False, True
    assert not collector.untaken


async def test_stream_interval_holds_tokens_back():
    request = EngineRequest(prompt=[5], max_tokens=50, speaker=Speaker(0))
    collector = OutputCollector(1, final_only=False)
    stream = ChoiceStream(request, 0, collector, Detokenizer([]), interval=4)
    sizes = []
    for tokens in ([10], [11, 12], [13], [14, 15]):
        request.tokens += tokens
        stream.deliver(tokens)
        if collector.untaken:
            sizes.append(len((await collector.get())[0].tokens))
    assert sizes == [1, 5]


async def test_an_abort_shows_what_a_stop_string_held_back():
    request = EngineRequest(prompt=[5], max_tokens=50, speaker=Speaker(0))
    collector = OutputCollector(1, final_only=False)
    stream = ChoiceStream(request, 0, collector, Detokenizer(["<end>"]), interval=1)
    stream.deliver(encode("abc"))
    assert (await collector.get())[0].text == ""
    stream.abort()
    (output,) = await collector.get()
    assert (output.text, output.tokens, output.finish_reason) == ("abc", [], FinishReason.ABORT)


def test_a_prompt_that_ends_inside_a_character_comes_out_again():
    ids = encode("hello 語")
    whole, split = Detokenizer([], prompt=ids), Detokenizer([], prompt=ids[:-1])
    assert whole.update(encode(" x"), finished=False) == (" x", None)
    assert split.update(ids[-1:], finished=False) == ("hello 語", None)
    assert split.update(encode(" x"), finished=True) == (" x", None)
