"""Text generation: a checkpoint, its tokenizer and a sampler behind one function.

checkpoint = load("my-model")
for passage in write(checkpoint, "In the beginning", Settings(algorithm="acs", steps=16)):
    print(passage.text)
"""

from hdlm.generation.passages import Ending
from hdlm.generation.recording import TraceDocument, record
from hdlm.generation.settings import Settings, planned
from hdlm.generation.text import BLANK, Passage, Passages, blanks
from hdlm.generation.write import complete, write

__all__ = [
    "BLANK",
    "Ending",
    "Passage",
    "Passages",
    "Settings",
    "TraceDocument",
    "blanks",
    "complete",
    "planned",
    "record",
    "write",
]
