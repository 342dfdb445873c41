"""The page's style sheet: light and dark, from 400 pixels on, no font and no picture from anywhere.

Colours say what a stage is about; names beside them say it, too. Each keeps 3:1 against the track behind it (WCAG 1.4.11).
"""

from __future__ import annotations

from torpor.telemetry.stages import RESTORE_STAGES, Stage

__all__ = ["GROUPS", "STYLE", "group_of"]

GROUPS: dict[str, tuple[str, tuple[Stage, ...]]] = {
    "process": ("process, checks", (Stage.PROCESS, Stage.PREFLIGHT, Stage.VERIFY, Stage.IMPORTS)),
    "load": ("engine start", (Stage.LAUNCH, Stage.READY)),
    "warm": ("warm-up, canary", (Stage.WARMUP, Stage.CANARY, Stage.CANARY_CHECK)),
    "sleep": ("falling asleep", (Stage.DRAIN, Stage.PRE_SNAPSHOT)),
    "snapshot": ("snapshot", RESTORE_STAGES),
    "wake": ("wake, opening", (Stage.POST_RESTORE, Stage.SERVE)),
    "answer": ("first answer", (Stage.FIRST_ANSWER,)),
}
"""What stages are about, by the name of the colour: in words, and which stages."""


def group_of(stage: str) -> str:
    """The colour of a stage; one that is not known has the first."""
    return next((group for group, (_, stages) in GROUPS.items() if stage in stages), "process")


STYLE = """
:root { color-scheme: light dark;
  --paper: #faf9f7; --card: #ffffff; --ink: #1d2229; --soft: #58616d; --line: #e2e0db; --track: #f1efeb;
  --process: #6f7885; --load: #2f6fb5; --warm: #1b8276; --sleep: #7a5ea8; --snapshot: #b3660f; --wake: #43822f;
  --answer: #bd3f66; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14171b; --card: #1c2026; --ink: #e7e9ec; --soft: #a3acb8; --line: #2f353d; --track: #262b32;
  --process: #929cab; --load: #6ba6e8; --warm: #4dbcac; --sleep: #ae94dd; --snapshot: #e09a4a; --wake: #83c06a;
  --answer: #ec84a4; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.25rem 3rem; }
section.file + section.file { margin-top: 4rem; border-top: 1px solid var(--line); padding-top: 2.5rem; }
h1, h2 { line-height: 1.2; margin: 0; font-weight: 650; letter-spacing: -.01em; }
h1 { font-size: 1.75rem; }
h2 { font-size: 1.15rem; margin: 2.75rem 0 .3rem; }
h3 { font-size: .95rem; margin: 0; font-weight: 600; }
p { margin: .3rem 0; max-width: 46rem; }
.soft, figcaption, dt, footer { color: var(--soft); }
.soft, figcaption, footer { font-size: .875rem; }
data { font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: .8rem 0 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: 1rem; margin: 1.5rem 0 0; }
.tiles > div, .card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.15rem; }
.tiles dt { font-size: .875rem; }
.tiles dd { margin: .1rem 0 0; font-size: 1.75rem; font-weight: 650; letter-spacing: -.02em; line-height: 1.2; }
.pairs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem; margin-top: .8rem; }
.card header { display: flex; justify-content: space-between; gap: 1rem; align-items: baseline; margin-bottom: .5rem; }
.rows { list-style: none; margin: 0; padding: 0; }
.rows li { display: grid; grid-template-columns: 7.4rem minmax(0, 1fr) 4.6rem; gap: .6rem; align-items: center;
  font-size: .8125rem; line-height: 1.75; }
.rows li > data, .rows .unit { text-align: right; }
.track { position: relative; height: .8rem; background: var(--track); border-radius: .2rem; }
.track i { position: absolute; top: 0; bottom: 0; min-width: 2px; border-radius: .15rem; background: var(--c); }
.lanes .track { height: 1.25rem; }
.lanes .track i { border-radius: 0; }
.lanes li { padding: .1rem 0; }
.lanes li.restored + li.cold, .lanes li.woken + li.cold { margin-top: .55rem; }
.mark .track { background: none; border-top: 1px solid var(--line); height: 0; border-radius: 0; }
.mark .track i { width: .55rem; height: .55rem; min-width: 0; top: -.32rem; bottom: auto; background: var(--ink);
  transform: translateX(-50%) rotate(45deg); border-radius: 1px; }
.marks { margin-top: .35rem !important; color: var(--soft); }
.axis { color: var(--soft); }
.axis .ends { display: flex; justify-content: space-between; border-top: 1px solid var(--soft); font-size: .75rem; }
.failed, .error { color: var(--bad); }
.error { font-size: .8125rem; margin: 0 0 .3rem; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; margin: .7rem 0 0; padding: 0; list-style: none;
  font-size: .8125rem; color: var(--soft); }
.legend i { display: inline-block; width: .75rem; height: .75rem; border-radius: .15rem; background: var(--c);
  margin-right: .4rem; vertical-align: -.06rem; }
table { border-collapse: collapse; width: 100%; max-width: 52rem; margin-top: .6rem; font-size: .875rem; }
th, td { text-align: right; padding: .4rem .5rem; border-bottom: 1px solid var(--line); font-weight: 400; }
thead th { color: var(--soft); }
th:first-child, tbody th { text-align: left; padding-left: 0; }
dl.facts { display: grid; grid-template-columns: minmax(8rem, 15rem) minmax(0, 1fr); gap: .35rem 1.25rem; margin: .6rem 0 0;
  font-size: .875rem; max-width: 62rem; }
dl.facts dd { margin: 0; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1rem; }
@media (max-width: 560px) {
  main { padding: 1.5rem .9rem 2rem; }
  h1 { font-size: 1.4rem; }
  .card { padding: .85rem .8rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .6rem; }
  .tiles > div { padding: .75rem .8rem; }
  .tiles > div:last-child { grid-column: 1 / -1; }
  .tiles dd { font-size: 1.35rem; }
  .rows li { grid-template-columns: 5.9rem minmax(0, 1fr) 4.1rem; gap: .45rem; font-size: .78rem; }
  th, td { padding: .35rem .22rem; font-size: .78rem; }
  dl.facts { grid-template-columns: 1fr; gap: 0; }
  dl.facts dd { margin-bottom: .5rem; }
}
@media print { .card, .tiles > div { break-inside: avoid; } .track i { print-color-adjust: exact; } }
""" + "\n".join(f".g-{group} {{ --c: var(--{group}); }}" for group in GROUPS)
