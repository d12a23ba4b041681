"""Prompts in ordinary words for scenes of the made-up world."""

from __future__ import annotations

import random

from training.world import COLORS, MOTIONS, PLACES, SHAPES, SIGNS, SIZES, Scenes


def plain_caption(scenes: Scenes, index: int) -> str:
    """Return a whole prompt in the first words of the vocabulary."""
    color = list(COLORS)[scenes.color[index, 0]]
    shape = list(SHAPES)[scenes.shape[index, 0]]
    motion = list(MOTIONS.values())[scenes.motion[index]][0]
    place = list(PLACES.values())[scenes.place[index]][0]
    word = scenes.word(index)
    article = "An" if color[0] in "aeiou" else "A"
    sign = f', with the word "{word}"' if word else ""
    return f"{article} {color} {shape} {motion} {place}{sign}."


def caption(scenes: Scenes, index: int, rng: random.Random) -> str:
    """Return a prompt for a scene in ordinary words, some of them left out.

    Args:
        scenes: on the CPU.
        index: of the scene.
        rng: chooses the words.
    """
    place = rng.choice(list(PLACES.values())[scenes.place[index]])
    motion = rng.choice(list(MOTIONS.values())[scenes.motion[index]])
    things = [_thing(scenes, index, k, rng) for k in range(2 if scenes.two[index] else 1)]
    subject = " and ".join(things)
    if len(things) == 2:
        motion = _plural(motion)
    left_out = rng.random()
    if left_out < 0.08:
        text = rng.choice([f"{subject} {motion}", subject])
    elif left_out < 0.14:
        text = f"{subject} {place}"
    else:
        text = rng.choice(
            [
                f"{subject} {motion} {place}",
                f"{subject} {motion} {place}",
                f"{place}, {subject} {motion}",
                f"{place} {subject} {motion}",
                f"{subject}, {place}, {motion}",
            ]
        )
    word = scenes.word(index)
    if word:
        sign = rng.choice(SIGNS).format(word)
        text = f"{sign}, {text}" if rng.random() < 0.2 else f"{text}, {sign}"
    if rng.random() < 0.75:
        text = text[0].upper() + text[1:]
    return text + ("." if rng.random() < 0.7 else "")


def _thing(scenes: Scenes, index: int, k: int, rng: random.Random) -> str:
    size = rng.choice(list(SIZES.values())[scenes.size[index, k]])
    color = list(COLORS)[scenes.color[index, k]]
    shape = rng.choice(list(SHAPES.values())[scenes.shape[index, k]])
    if rng.random() < 0.4:
        size = ""
    if rng.random() < 0.05:
        color = ""
    words = " ".join(w for w in (size, color, shape) if w)
    return ("an " if words[0] in "aeiou" else "a ") + words


def _plural(motion: str) -> str:
    verb, *rest = motion.split(" ")
    verb = {"goes": "go", "does": "do", "glides": "glide", "rises": "rise"}.get(verb, verb)
    verb = {"bounces": "bounce", "circles": "circle", "rotates": "rotate"}.get(verb, verb)
    verb = {"moves": "move"}.get(verb, verb.removesuffix("s"))
    return " ".join([verb, *rest])


def whole_caption(scenes: Scenes, index: int, rng: random.Random) -> str:
    """Return a prompt in ordinary words that leaves out nothing but the size."""
    k = scenes.color[index, 0]
    color, shapes = list(COLORS)[k], list(SHAPES.values())[scenes.shape[index, 0]]
    motions = list(MOTIONS.values())[scenes.motion[index]]
    places = list(PLACES.values())[scenes.place[index]]
    while True:
        text = caption(scenes, index, rng)
        said = text.lower()
        kinds = (motions, places, [f"{color} {shape}" for shape in shapes])
        if all(any(words in said for words in some) for some in kinds):
            return text
