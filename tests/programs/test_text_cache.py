from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tutelage.programs.text_cache import TextCache


@given(st.lists(st.text("ab", min_size=1, max_size=6)), st.integers(1, 5), st.integers(6, 20))
def test_the_newest_texts_are_kept_within_both_bounds(texts: list[str], most: int, characters: int) -> None:
    cache: TextCache[int] = TextCache(most, characters)
    for number, text in enumerate(dict.fromkeys(texts)):
        cache.put(text, number)
        assert cache.get(text) == number
    held = [text for text in dict.fromkeys(texts) if cache.get(text) is not None]
    assert len(held) <= most and sum(map(len, held)) <= characters
    assert held == list(dict.fromkeys(texts))[len(set(texts)) - len(held) :]


def test_the_same_text_in_another_context_is_another() -> None:
    cache: TextCache[str] = TextCache(5)
    cache.put("a", "one", ("IMAGE",))
    assert cache.get("a", ("LEFT", "RIGHT")) is None and cache.get("a", ("IMAGE",)) == "one"
