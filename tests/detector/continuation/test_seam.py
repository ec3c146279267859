"""Stop strings across a cut, against a search in the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.continuation.seam import Seam

TEXTS = st.text(alphabet="ab", max_size=12)


@given(
    before=TEXTS, new=TEXTS, stop=st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=3), data=st.data()
)
def test_across_the_cut_as_in_the_whole_text(before: str, new: str, stop: list[str], data: st.DataObject) -> None:
    held = max(map(len, stop), default=1) - 1
    sent = max(0, len(before) - held)
    include = data.draw(st.booleans())
    size = data.draw(st.integers(1, 5))
    seam = Seam(before, sent, stop, include_stop=include)
    out, found = "", None
    pieces = [new[at : at + size] for at in range(0, len(new), size)] or [""]
    for place, piece in enumerate(pieces):
        text, found = seam.feed(piece, finished=place == len(pieces) - 1)
        out += text
        if found is not None:
            break
    whole = before + new
    across = [
        (at + len(one), at, one)
        for one in stop
        for at in range(len(before))
        if whole.startswith(one, at) and at + len(one) > len(before)
    ]
    if not across:
        assert (out, found) == (whole[sent:], None)
        return
    end, at, one = min(across)
    assert (out, found) == (whole[sent : end if include else at], one)


@pytest.mark.parametrize("finished", [True, False])
def test_nothing_is_given_out_before_it_is_certain(finished: bool) -> None:
    seam = Seam("one EN", 4, ["END.", "x"], include_stop=False)
    assert seam.feed("", finished=finished) == (("EN", None) if finished else ("", None))


def test_without_stop_strings_the_text_passes() -> None:
    seam = Seam("one", 3, [], include_stop=False)
    assert seam.feed("two", finished=False) == ("two", None)
