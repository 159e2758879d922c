"""When each position is noisy: integer noise levels over (generation step, position).

| model | class | `starts[i]` | levels |
|---|---|---|---|
| GPT | `autoregressive(l)` | `i` | 1 |
| MDLM, SEDD | `flat(l, T)` | `0` | T |
| BD3-LM | `Block(l, w, T)` | `(i // w) T` | T |
| DiffusionGemma | `PromptedBlock(l, w, T)` | `(i // w) T`, behind the prompt | T |
| sliding window | `Slide(l, w, T)` | `i T // w` | T |
| wave inside blocks | `Wave(l, w, T)` | `(i // w)(T + w - 1) + i mod w` | T |

`PublishedSlide` and `PublishedWave` are the hyperschedules of the published configs `simple` and `hybrid`; `Table` is
any table of levels. A hyperschedule of your own is one file: subclass `AbstractCountdown` and define `starts`, or
`AbstractHyperschedule` and define `levels` and `settles`.
"""

from hdlm.hyperschedule.base import AbstractHyperschedule, Regions
from hdlm.hyperschedule.block import Block, autoregressive, flat
from hdlm.hyperschedule.countdown import AbstractCountdown
from hdlm.hyperschedule.packing import AbstractPacking, Packed, opens_left_to_right, packing
from hdlm.hyperschedule.prompted import PromptedBlock
from hdlm.hyperschedule.published import PublishedSlide, PublishedWave
from hdlm.hyperschedule.slide import Slide
from hdlm.hyperschedule.table import Table
from hdlm.hyperschedule.wave import Wave

__all__ = [
    "AbstractCountdown",
    "AbstractHyperschedule",
    "AbstractPacking",
    "Block",
    "Packed",
    "PromptedBlock",
    "PublishedSlide",
    "PublishedWave",
    "Regions",
    "Slide",
    "Table",
    "Wave",
    "autoregressive",
    "flat",
    "opens_left_to_right",
    "packing",
]
