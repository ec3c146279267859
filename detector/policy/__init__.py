"""Which backend serves the next request: what is known of the backends in, decisions out.

The policy is a small state machine whose table is data (``transitions``). It reads no clock and does no I/O: the caller
tells it what happened and when (``decide``), carries out the actions it returns, and calls again with
``Event.DWELL_ELAPSED`` at ``PolicyState.wake_at``. It compares expected costs (``cost``), sends canaries from a budget
(``canaries``), restarts only where that pays back (``restarts``), and can say why at any time (``explanation``).
Promises that hold for every sequence of signals (property tests check them):

* routing is always defined: the primary serves in ``PRIMARY``, a fallback in the other states, where there is one;
* at most one canary is out: each ``SendCanary`` is answered by exactly one ``CANARY_*`` signal (the caller's own
  time-out makes it ``CANARY_FAILED``), and no other is sent before that;
* the route changes at most once per ``dwell_seconds``, unless it leaves a backend that cannot be reached, or that is
  restarted;
* canaries ask for no more tokens than their budget, one smallest canary per longest wait aside;
* no more restarts than their budget, and only at levels of the ladder.

It fails open: where no backend is good, the least bad one serves. What was seen of a backend ages, so that a fallback
found bad an hour ago is tried again. Verdict signals may be repeated, and should be sent after every judged answer: a
change of route held back by the third promise is made by the next one.
"""

from detector.policy.actions import Action, Notice, Restart, RouteTo, SendCanary
from detector.policy.config import Level, Mode, PolicyConfig
from detector.policy.machine import decide, signal_of
from detector.policy.state import BackendView, Pace, PolicyState, Signal, serving
from detector.policy.transitions import Event, State

__all__ = [
    "Action",
    "BackendView",
    "Event",
    "Level",
    "Mode",
    "Notice",
    "Pace",
    "PolicyConfig",
    "PolicyState",
    "Restart",
    "RouteTo",
    "SendCanary",
    "Signal",
    "State",
    "decide",
    "serving",
    "signal_of",
]
