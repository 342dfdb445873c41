"""Rules for every engine plugin, as test classes. Each engine's tests subclass them and set the engine's values.

Rules about the real engine need the fixtures `questions` and `asked`, which ask a process with the real engine; see
`tests.plugins.local_engines`.
"""

from __future__ import annotations
