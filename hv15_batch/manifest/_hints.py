"""Hints for unknown columns: the names of other tools first, then typing errors.

A wrong hint is worse than none, so names are not compared by similarity alone: `weight` is one
letter from `height`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

_SEPARATORS = re.compile(r"[\s_\-\ufeff\u200b]+")
MAX_NAME_CHARACTERS = 64
"""A longer name is not compared, because names of columns are short."""

_SYNONYMS: dict[str, str] = {
    "prompt": "caption captions text texts prompts videoprompt textprompt videocaption inputprompt "
    "videotext videodescription description positive positiveprompt prompttext prompten promptzh "
    "promptcn prompttext captionen textcaption t2vprompt i2vprompt userprompt finalprompt "
    "longcaption shortcaption densecaption sentence enhancedprompt refinedprompt augmentedprompt "
    "originalprompt rewrittenprompt expandedprompt",
    "negative_prompt": "negative negatives neg negprompt negativetext negativeprompts nprompt "
    "negativecaption uncondprompt unconditionalprompt",
    "num_inference_steps": "steps numsteps inferencesteps samplingsteps infersteps samplesteps "
    "inferstep numsamplingsteps numberofsteps denoisingsteps diffusionsteps ddimsteps stepcount",
    "guidance_scale": "cfg cfgscale guidance textguidance textguidancescale cfgguidance "
    "unconditionalguidancescale classifierfreeguidance guidancestrength",
    "num_frames": "frames length videolength framecount nframes numberofframes framenum numframe "
    "framescount totalframes clipframes",
    "flow_shift": "shift flowmatchshift timeshift timestepshift schedulershift sigmashift "
    "discreteflowshift samplershift",
    "image": "imagepath img imgpath imagefile firstframe firstframepath inputimage imagename "
    "firstimage startimage startframe initimage initialimage conditionimage imgname imgfile "
    "imagefilename images picture photo",
    "height": "h videoheight heightpx outputheight pixelheight heights",
    "width": "w videowidth widthpx outputwidth pixelwidth widths",
    "id": "filename name videoname videoid uid uuid key clipid clipname itemid promptid sampleid "
    "index idx rowid outputname outputfilename savename identifier",
    "seed": "seeds randomseed rngseed noiseseed generatorseed",
    "loras": "lora lorapath loraweights lorafile adapters adapter loraname lorafiles",
    "model": "models modelname modelid modeloption basemodel",
    "fps": "framerate framespersecond videofps outputfps framesrate",
    "join": "film filmname filmid joinas",
}
_MEANINGS = {word: known for known, words in _SYNONYMS.items() for word in words.split()}

_SIZE = "a size has two columns, height and width"
_SECONDS = "the length is num_frames, in frames: 24 for each second, plus one"
_ADVICE = {
    **dict.fromkeys(("size", "resolution", "videosize", "imagesize", "dimensions", "wh"), _SIZE),
    **dict.fromkeys(("duration", "seconds", "videoduration", "durationseconds"), _SECONDS),
}

MIN_SLIP_CHARACTERS = 5
"""Shorter names resemble too many words: `speed` is one letter from `seed`."""
LONG_CHARACTERS = 9
"""From this length on a name may have two typing errors."""


def folded(name: str) -> str:
    """Return a name without regard to case, spaces, hyphens, underscores and marks of order."""
    return _SEPARATORS.sub("", unicodedata.normalize("NFKC", name)).casefold()


def meaning(name: str, known_columns: Collection[str]) -> str | None:
    """Return the known column that a foreign name means, or None if that is not sure.

    Args:
        name: The name in the file.
        known_columns: All columns that a manifest may have.
    """
    if len(name) > MAX_NAME_CHARACTERS:
        return None
    short = folded(name)
    known = {folded(column): column for column in known_columns}
    if short in known:
        return known[short]
    if short in _MEANINGS:
        return _MEANINGS[short]
    near = {column for word, column in known.items() if _is_slip(short, word)}
    near = near or {
        column
        for word, column in _MEANINGS.items()
        if _is_slip(short, word, swaps_only=len(word) < len("caption"))
    }
    return near.pop() if len(near) == 1 else None


def advice(name: str) -> str | None:
    """Return advice for a column that no single known column can replace, or None."""
    return _ADVICE.get(folded(name))


def _is_slip(typed: str, word: str, *, swaps_only: bool = False) -> bool:
    """Whether `typed` is `word` with a letter too few, too many, wrong, or two swapped.

    The first letter must be equal, so that `weight` is not taken for `height`.
    """
    if min(len(word), len(typed)) < MIN_SLIP_CHARACTERS:
        return False
    if typed[0] != word[0] or abs(len(typed) - len(word)) > 2:
        return False
    if swaps_only:
        return sorted(typed) == sorted(word) and _distance(typed, word) == 1
    return _distance(typed, word) <= (2 if len(word) >= LONG_CHARACTERS else 1)


def _distance(one: str, other: str) -> int:
    """Return how many letters must be added, removed, changed or swapped with the next one.

    Source: the optimal string alignment distance, see Damerau, doi:10.1145/363958.363994.
    """
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        now = [i]
        for j, b in enumerate(other, 1):
            cost = min(last[j] + 1, now[-1] + 1, last[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, before[j - 2] + 1)
            now.append(cost)
        before, last = last, now
    return last[-1]
