"""What the writing model is asked for: simple stories and everyday questions, put together from word lists.

A small model that is asked a thousand times for "a story" writes one story a thousand times. So every prompt is a
different draw from the lists of words.py, and the first words of a story are given as well: they set its tone far
better than any instruction does (asked for "small words and short sentences" SmolLM2 goes in circles), and no two are
alike.
"""

# ruff: noqa: S311 - words are drawn by seed, nothing here is secret

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from words import (
    ACTIVITIES,
    ACTIVITY_QUESTIONS,
    ANIMAL_QUESTIONS,
    ANIMALS,
    ASKERS,
    BOYS,
    DEEDS,
    FEELINGS,
    GIRLS,
    HELPERS,
    MOOD_ASKS,
    MOODS,
    MORALS,
    NATURES,
    OBJECTS,
    PET_NAMES,
    PLACES,
    SHAPES,
    THING_QUESTIONS,
    THINGS,
    TIMES,
    WEATHERS,
    WHY_QUESTIONS,
    WHYS,
)

Domain = Literal["story", "chat"]

# The system prompt that it was trained with: it writes best with it.
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@dataclass(frozen=True)
class Prompt:
    """What is asked, how it shall be answered, and the first words of the answer (possibly none)."""

    domain: Domain
    request: str
    instruction: str
    opening: str

    def markup(self) -> str:
        """Returns the prompt as SmolLM2 reads it, the answer begun."""
        turns = (
            f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{self.request} {self.instruction}<|im_end|>\n"
        )
        return f"{turns}<|im_start|>assistant\n{self.opening}"


def _with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


@dataclass(frozen=True)
class Hero:
    """Who the story is about."""

    name: str
    kind: str
    pronoun: str

    @property
    def owner(self) -> str:
        return {"he": "his", "she": "her"}[self.pronoun]


def _hero(rng: random.Random) -> Hero:
    pronoun = rng.choice(["he", "she"])
    if rng.random() < 0.5:
        return Hero(rng.choice(PET_NAMES), rng.choice(ANIMALS), pronoun)
    return Hero(rng.choice(GIRLS if pronoun == "she" else BOYS), "girl" if pronoun == "she" else "boy", pronoun)


def _deed(rng: random.Random, hero: Hero) -> str:
    helper = f"{hero.owner} {rng.choice(HELPERS)}"
    return rng.choice(DEEDS).format(object=rng.choice(OBJECTS), helper=helper, animal=rng.choice(ANIMALS))


def _once(rng: random.Random, hero: Hero) -> str:
    kind = _with_article(f"{rng.choice(NATURES)} {hero.kind}")
    start = rng.choice(
        ["Once upon a time there was", "Once upon a time, there was", "There once was", "Once there was", "There was"]
    )
    home = f"{hero.pronoun.capitalize()} lived {rng.choice(PLACES)}."
    return f"{start} {kind} named {hero.name}. {home} One {rng.choice(TIMES)}, {hero.name}"


def _one_day(rng: random.Random, hero: Hero) -> str:
    who = rng.choice([hero.name, f"{hero.name} the {hero.kind}", f"a {hero.kind} named {hero.name}"])
    return f"One {rng.choice(WEATHERS)} {rng.choice(TIMES)}, {who} {_deed(rng, hero)}."


def _weather(rng: random.Random, hero: Hero) -> str:
    return f"It was a {rng.choice(WEATHERS)} {rng.choice(TIMES)}. {hero.name} the {hero.kind} {_deed(rng, hero)}."


def _nature(rng: random.Random, hero: Hero) -> str:
    what = _with_article(f"{rng.choice(NATURES)} {hero.kind}")
    return f"{hero.name} was {what}. {hero.pronoun.capitalize()} had {_with_article(rng.choice(OBJECTS))}."


def _feeling(rng: random.Random, hero: Hero) -> str:
    return f"{hero.name} the {hero.kind} was {rng.choice(FEELINGS)}. {hero.pronoun.capitalize()} {_deed(rng, hero)}."


def _friends(rng: random.Random, hero: Hero) -> str:
    friend = _hero(rng)
    together = rng.choice(["best friends", "good friends", "neighbours", "friends"])
    return (
        f"{hero.name} the {hero.kind} and {friend.name} the {friend.kind} were {together}. One {rng.choice(TIMES)} they"
    )


def _talk(rng: random.Random, hero: Hero) -> str:
    helper = rng.choice(HELPERS)
    ask = rng.choice(["Can I have", "Where is", "Can we find", "Who has", "Did you see", "Can you fix", "May I take"])
    thing = ("the " if ask != "Can I have" else "a ") + rng.choice(OBJECTS)
    return f'"{ask} {thing}?" {hero.name} asked {hero.owner} {helper}.'


OPENINGS: list[Callable[[random.Random, Hero], str]] = [
    _once,
    _once,
    _one_day,
    _one_day,
    _weather,
    _nature,
    _feeling,
    _friends,
    _talk,
]


def story(rng: random.Random) -> Prompt:
    """Returns a request for a story with its first sentence."""
    hero = _hero(rng)
    thing = _with_article(rng.choice(OBJECTS))
    request = f"Tell me a bedtime story about {_with_article(hero.kind)} named {hero.name} and {thing}."
    instruction = f"{rng.choice(SHAPES)} It shows that {rng.choice(MORALS)}."
    return Prompt("story", request, instruction, rng.choice(OPENINGS)(rng, hero))


def _fill(rng: random.Random, pattern: str) -> str:
    animal = rng.choice(ANIMALS)
    return pattern.format(
        thing=rng.choice(THINGS),
        activity=rng.choice(ACTIVITIES),
        why=rng.choice(WHYS),
        animal=animal,
        an_animal=_with_article(animal),
        feeling=rng.choice(FEELINGS),
        helper=rng.choice(HELPERS),
        object=rng.choice(OBJECTS),
        weather=rng.choice(WEATHERS),
    )


def _question(rng: random.Random) -> str:
    kind = rng.choice([THING_QUESTIONS, ACTIVITY_QUESTIONS, WHY_QUESTIONS, ANIMAL_QUESTIONS, MOODS])
    question = _fill(rng, rng.choice(kind))
    return f"{question} {rng.choice(MOOD_ASKS)}" if kind is MOODS else question


def chat(rng: random.Random) -> Prompt:
    """Returns a child's question; half of them come with a word before."""
    question = _question(rng)
    request = f"{rng.choice(ASKERS)} {question}" if rng.random() < 0.5 else question
    return Prompt("chat", request, "Answer in two or three simple sentences.", "")


def prompts(seed: int, chat_share: float) -> Iterator[Prompt]:
    """Yields prompts without end. No two stories are alike; chats, of which the lists allow fewer, come again."""
    rng = random.Random(seed)
    seen: set[Prompt] = set()
    while True:
        prompt = chat(rng) if rng.random() < chat_share else story(rng)
        if prompt.domain == "chat" or prompt not in seen:
            seen.add(prompt)
            yield prompt
