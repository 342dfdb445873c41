"""What the tests of every engine's plugin hold it to: classes that each engine's tests derive from and name its values in.

The rules about the real engine want a fixture `questions` (and `asked`), a process of the engine's that answers; see
`tests.plugins.local_engines`.
"""

from __future__ import annotations
