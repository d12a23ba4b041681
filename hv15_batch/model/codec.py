"""How a clip's frames are stored: the codecs and what is said about each of them.

Every clip is one file, because a clip's row in the log names one file and its hash. So `png`, a
sequence of PNG pictures, is held by a QuickTime file. That file has the clip's settings, like the
others, and FFmpeg takes the pictures out without encoding them again:

    ffmpeg -i clip.mov -c copy frame_%05d.png
"""

from __future__ import annotations

from enum import Enum


class VideoCodec(Enum):
    """How frames are stored; browsers play `h264` alone."""

    h264 = "h264"
    ffv1 = "ffv1"
    prores = "prores"
    png = "png"

    @property
    def suffix(self) -> str:
        """Suffix of a clip's file, with its dot."""
        return {"h264": ".mp4", "ffv1": ".mkv"}.get(self.value, ".mov")

    @property
    def is_lossless(self) -> bool:
        """Whether the file gives every RGB value back."""
        return self in (VideoCodec.ffv1, VideoCodec.png)

    @property
    def bits_per_pixel(self) -> float:
        """A cautious size of its files.

        h264 at CRF 17 takes less than 0.5. Source of prores: Apple ProRes white paper, 2022, target
        rates of 422 HQ: 3.5 at 1920x1080 and up to 4.2 at 720x486.
        """
        return {"h264": 0.5, "ffv1": 12, "prores": 5, "png": 16}[self.value]


VIDEO_SUFFIXES = tuple(dict.fromkeys(codec.suffix for codec in VideoCodec))
"""Suffixes of clips, with their dots, each once."""
