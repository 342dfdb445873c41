"""A short sound, generated: the canary and the warm-up of `transcribe` send it, and no recording has to be shipped."""

from __future__ import annotations

import io
import math
import struct
import wave

__all__ = ["RATE_HZ", "generated_sound"]

RATE_HZ = 16_000
"""What speech models hear; other rates would be resampled first."""

_LOUDNESS = 12_000
_FIRST_HZ, _LAST_HZ = 180.0, 1_800.0


def generated_sound(seconds: float) -> bytes:
    """A WAV file, mono, 16 bits: a tone that rises, in syllables of a quarter of a second.

    Args:
        seconds: its length.
    """
    count = int(seconds * RATE_HZ)
    samples = []
    phase = 0.0
    for number in range(count):
        phase += 2 * math.pi * (_FIRST_HZ + (_LAST_HZ - _FIRST_HZ) * number / count) / RATE_HZ
        syllable = abs(math.sin(math.pi * 4 * number / RATE_HZ))
        samples.append(int(_LOUDNESS * syllable * math.sin(phase)))
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(struct.pack(f"<{count}h", *samples))
    return written.getvalue()
