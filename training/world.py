"""A made-up world of moving things: the training data of the demo models.

A scene is one object (now and then two) of one colour that moves in one way in one place; a sign
with a word may hang above. Scenes are tensors, so that `drawing` draws a batch at once on any
device. The same generator gives the same scenes everywhere. `prompts` puts them into words.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from training.lettering import ALPHABET

HEIGHT, WIDTH, FRAMES, FPS = 128, 192, 25, 16

COLORS = {
    "red": (0.86, 0.13, 0.14),
    "green": (0.13, 0.62, 0.22),
    "blue": (0.12, 0.33, 0.88),
    "yellow": (0.98, 0.83, 0.12),
    "orange": (0.97, 0.49, 0.08),
    "purple": (0.50, 0.18, 0.72),
    "white": (0.95, 0.95, 0.96),
    "pink": (0.97, 0.47, 0.70),
}
SHAPES = {
    "ball": ("ball", "sphere"),
    "cube": ("cube", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring", "hoop"),
    "heart": ("heart",),
}
SIZES = {"small": ("small", "little"), "medium": ("",), "large": ("large", "big")}
"""The middle size is never named."""
RADII = {"small": 25.0, "medium": 31.0, "large": 38.0}
MOTIONS = {
    "right": ("moves from left to right", "moves to the right", "glides to the right"),
    "left": ("moves from right to left", "moves to the left", "glides to the left"),
    "up": ("rises", "floats up", "goes up"),
    "down": ("falls", "sinks down", "goes down"),
    "bounce": ("bounces", "bounces up and down", "jumps up and down"),
    "spin": ("spins", "turns", "rotates"),
    "grow": ("grows", "gets bigger"),
    "shrink": ("shrinks", "gets smaller"),
    "orbit": ("circles around", "goes round in circles"),
    "still": ("stands still", "does not move"),
}
PLACES = {
    "meadow": ("in a green meadow", "on a green meadow", "on the grass"),
    "desert": ("in the desert", "among sand dunes"),
    "snow": ("in the snow", "in a snowy landscape"),
    "sea": ("over the sea", "above the ocean"),
    "sunset": ("at sunset", "in the evening sun"),
    "night": ("at night", "in the moonlight"),
    "grey": ("in a grey studio", "in a gray studio"),
    "cream": ("on a cream wall", "in front of a cream wall"),
}
SIGNS = (
    'a sign reads "{}"',
    'with the word "{}"',
    'a sign says "{}"',
    'under the word "{}"',
)
WORDS = (
    "HELLO WORLD OPEN VIDEO LOVE SUMMER WINTER MUSIC DREAM HAPPY MAGIC PLAY GO YES HOME BATCH "
    "RENDER MOVIE OCEAN JOY LIGHT COLOR DANCE PARTY STAR SUN MOON SKY WIND RAIN WELCOME SALE "
    "COFFEE TEA CAFE HOTEL STOP START NEW BEST FAST GOOD TIME LIFE PEACE SMILE FRIEND THANKS"
).split()

MAX_LETTERS = 9
SIGN_ROW, SIGN_COLUMN = 1, 1
"""Latent cell in which every word begins: each letter fills one cell of 16x16 pixels."""
_SCENERY, _PER_OBJECT = 12, 6


@dataclass
class Scenes:
    """A batch of scenes. Names of the world are indices into its dictionaries.

    Attributes:
        color: int64 [B, 2], of the first and the second object.
        shape: int64 [B, 2].
        size: int64 [B, 2].
        motion: int64 [B], of all objects.
        place: int64 [B].
        letters: int64 [B, 9], 0 for none, 1 for A.
        two: bool [B], whether there is a second object.
        scenery: float32 [B, 12] in 0..1, what varies in the place.
        poses: float32 [B, 2, 6] in 0..1, where the objects are and how fast they go.
    """

    color: torch.Tensor
    shape: torch.Tensor
    size: torch.Tensor
    motion: torch.Tensor
    place: torch.Tensor
    letters: torch.Tensor
    two: torch.Tensor
    scenery: torch.Tensor
    poses: torch.Tensor

    def __len__(self) -> int:
        return self.motion.shape[0]

    def to(self, device: torch.device | str) -> Scenes:
        """Return the scenes on a device."""
        return Scenes(*(getattr(self, f.name).to(device) for f in fields(self)))

    def copy_(self, other: Scenes) -> None:
        """Overwrite the tensors in place."""
        for f in fields(self):
            getattr(self, f.name).copy_(getattr(other, f.name), non_blocking=True)

    def __getitem__(self, index: torch.Tensor | slice) -> Scenes:
        return Scenes(*(getattr(self, f.name)[index] for f in fields(self)))

    def word(self, index: int) -> str:
        """Return the word on a scene's sign, empty where there is none."""
        return "".join(ALPHABET[i - 1] for i in self.letters[index].tolist() if i)


def concatenate(parts: list[Scenes]) -> Scenes:
    """Return several batches of scenes as one."""
    return Scenes(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Scenes)))


def even_places(number: int) -> tuple[int, ...]:
    """Return a place for each of some scenes, all places about equally often."""
    return tuple(i * len(PLACES) // number for i in range(number))


def sample_scenes(
    number: int,
    generator: torch.Generator,
    words: float = 0.5,
    two: float = 0.1,
    places: tuple[int, ...] | None = None,
) -> Scenes:
    """Draw scenes that may be trained on.

    Args:
        number: how many.
        generator: of the CPU.
        words: share of scenes with a sign.
        two: share of scenes with two objects.
        places: of the scenes; drawn if None.
    """

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, (number, *shape), generator=generator)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand((number, *shape), generator=generator)

    color, shape = integers(len(COLORS), 2), integers(len(SHAPES), 2)
    motion, place = integers(len(MOTIONS)), integers(len(PLACES))
    if places is not None:
        place = torch.tensor(places)
    # A combination kept for testing gets another colour.
    for _ in range(8):
        color[:, 0] = torch.where(
            is_kept(color[:, 0], shape[:, 0], motion, place),
            (color[:, 0] + 1) % len(COLORS),
            color[:, 0],
        )
    color[:, 1] = torch.where(
        color[:, 1] == color[:, 0], (color[:, 1] + 3) % len(COLORS), color[:, 1]
    )
    return Scenes(
        color=color,
        shape=shape,
        size=integers(len(SIZES), 2),
        motion=motion,
        place=place,
        letters=_sample_letters(number, generator, words),
        two=uniform() < two,
        scenery=uniform(_SCENERY),
        poses=uniform(2, _PER_OBJECT),
    )


def is_kept(
    color: torch.Tensor, shape: torch.Tensor, motion: torch.Tensor, place: torch.Tensor
) -> torch.Tensor:
    """Return which combinations are kept for testing, a sixteenth of them: bool [B]."""
    code = ((color * 7 + shape) * 11 + motion) * 13 + place
    return (code * 2654435761 >> 7) % 16 == 0


def sample_kept(number: int, generator: torch.Generator) -> Scenes:
    """Draw scenes of one object whose combinations are never trained on."""
    places = even_places(number)
    scenes = sample_scenes(number, generator, 0.6, 0.0, places)
    kept = torch.zeros(number, dtype=torch.bool)
    while not kept.all():
        for values, names in ((scenes.color[:, 0], COLORS), (scenes.shape[:, 0], SHAPES)):
            fresh = torch.randint(len(names), (number,), generator=generator)
            values.copy_(torch.where(kept, values, fresh))
        fresh = torch.randint(len(MOTIONS), (number,), generator=generator)
        scenes.motion.copy_(torch.where(kept, scenes.motion, fresh))
        kept = is_kept(scenes.color[:, 0], scenes.shape[:, 0], scenes.motion, scenes.place)
    return scenes


def _sample_letters(number: int, generator: torch.Generator, words: float) -> torch.Tensor:
    letters = torch.randint(1, 27, (number, MAX_LETTERS), generator=generator)
    length = torch.randint(1, MAX_LETTERS + 1, (number, 1), generator=generator)
    letters *= torch.arange(MAX_LETTERS) < length
    known = torch.zeros(len(WORDS), MAX_LETTERS, dtype=torch.int64)
    for row, word in zip(known, WORDS, strict=True):
        row[: len(word)] = torch.tensor([ord(c) - 64 for c in word])
    chosen = known[torch.randint(len(WORDS), (number,), generator=generator)]
    share = torch.rand((number, 2), generator=generator)
    letters = torch.where(share[:, :1] < 0.25, chosen, letters)
    return letters * (share[:, 1:] < words)
