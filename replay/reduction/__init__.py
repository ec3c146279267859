"""``replay reduce``: the shortest sequence of requests that still makes the engine collapse.

``plan`` says what to try next, ``trial`` tries it, ``judge`` says what came of it, ``evidence`` when that is enough,
``reducer`` puts them together and ``journal`` remembers.
"""
