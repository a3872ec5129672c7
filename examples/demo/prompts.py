"""What the writing model is asked for: simple stories and everyday questions, put together from word lists.

A small model that is asked a thousand times for "a story" writes one story a thousand times. So every prompt is a
different draw from the lists below, and the first words of a story are given as well: they set its tone far better than
any instruction does (asked for "small words and short sentences" SmolLM2 goes in circles), and no two are alike.
"""

# ruff: noqa: S311 - words are drawn by seed, nothing here is secret

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Domain = Literal["story", "chat"]


def _phrases(text: str) -> list[str]:
    return text.split("|")


# The system prompt that it was trained with: it writes best with it.
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

GIRLS = _phrases(
    "Anna|Lily|Mia|Emma|Sara|Lucy|Rosa|Nora|Ella|Ruby|Zoe|Amy|Kate|Jane|Molly|Daisy|Grace|Ivy|Clara|May|Tina|Sue|"
    "Eva|Ada|Bella|Nina|Maria|Lena|Hana|Mei|Aisha|Priya|Sofia|Olga|Ines|Freya|Leila|Yuki|Amina|Dora"
)
BOYS = _phrases(
    "Tom|Ben|Sam|Max|Tim|Jack|Leo|Finn|Luke|Adam|Noah|Joe|Dan|Peter|Paul|Oscar|Hugo|Theo|Bob|Bill|Nick|Jim|Omar|"
    "Ravi|Juan|Kenji|Li|Ivan|Marco|Pablo|Ali|Karl|Otto|Emil|David|Henry|Felix|Toby|Rory|Anton"
)
ANIMALS = _phrases(
    "cat|dog|rabbit|bear|fox|mouse|duck|frog|bird|owl|pig|cow|horse|sheep|goat|lion|tiger|monkey|elephant|turtle|"
    "squirrel|hedgehog|beaver|deer|penguin|whale|fish|crab|bee|ant|butterfly|snail|hen|kitten|puppy|lamb|donkey|"
    "swan|otter|mole|bat|wolf|panda|koala|camel|parrot|goose|seal|dolphin|ladybug|worm"
)
PET_NAMES = _phrases(
    "Pip|Spot|Coco|Dot|Fluff|Buddy|Snow|Sunny|Biscuit|Pepper|Bobo|Milo|Nibbles|Ginger|Patch|Honey|Button|Waddle|"
    "Hoppy|Fuzzy|Mimi|Zip|Bubbles|Berry|Tiny|Pebble|Rusty|Shadow|Star|Cookie|Peanut|Misty|Clover|Rocky"
)
NATURES = _phrases(
    "little|shy|brave|kind|curious|happy|sleepy|hungry|clever|funny|lonely|busy|careful|playful|gentle|quiet|noisy|"
    "proud|silly|grumpy|young|small|quick|slow|lazy|friendly"
)
PLACES = _phrases(
    "in a small house near the forest|on a green farm|in a little town by the sea|in a tall tree|near a blue lake|"
    "in a big city|on a hill|by the river|in a warm barn|in a village in the mountains|in a garden full of flowers|"
    "in a red house|at the edge of the wood|in a cozy hole under a tree|on a small island|next to a school|"
    "near the park|in a house with a yellow door|by a pond|above a bakery"
)
OBJECTS = _phrases(
    "red ball|blue kite|little boat|teddy bear|toy car|yellow hat|shiny stone|big box|old key|drum|green leaf|"
    "warm coat|picture book|birthday cake|apple|basket of eggs|balloon|paper plane|wooden train|doll|small seed|"
    "bell|bucket|blanket|lamp|cup of milk|pair of boots|umbrella|flower|jar of honey|carrot|snowman|swing|sled|map|"
    "feather|shell|ladder|wagon|puzzle|crayon|song|bike|scarf|cookie|pumpkin|nest|lost mitten|magnet|mirror|"
    "whistle|bag of nuts|pot of soup|tent|ring|rope|block tower|paint brush|letter|spoon"
)
WEATHERS = _phrases("sunny|rainy|windy|snowy|cold|warm|cloudy|foggy|bright|quiet|hot|stormy")
TIMES = _phrases("morning|day|afternoon|evening|Saturday|Sunday|night")
FEELINGS = _phrases(
    "sad|happy|scared|angry|excited|proud|tired|lonely|worried|surprised|shy|hungry|bored|jealous|sorry|glad"
)
MORALS = _phrases(
    "sharing is fun|friends help each other|it is good to tell the truth|it is fine to be different|"
    "you should never give up|kind words help|it is good to say sorry|being brave does not mean having no fear|"
    "we should take care of animals|it is good to ask for help|small ones can do big things|patience pays|"
    "we should listen to our parents|cleaning up can be fun|trying new things is good|everyone makes mistakes|"
    "work is lighter together|a promise should be kept|we should wait for our turn|home is the best place|"
    "it is nice to give|rest is good for you|we should be careful with other people's things|"
    "every day brings something new"
)
SHAPES = _phrases(
    "The hero loses it and looks for it everywhere.|The hero meets a new friend.|"
    "Something breaks and they mend it.|Two friends quarrel and make up.|There is a surprise at the end.|"
    "The hero gets lost and finds the way home.|The hero helps a smaller animal.|They plan a party.|"
    "The hero learns to do something hard.|A storm comes and they hide.|They build something together.|"
    "The hero is afraid at first.|The hero wants to keep it but then gives it away.|Grandmother tells what to do.|"
    "They race, and the slow one wins.|A neighbour needs help.|The hero cannot sleep.|They go on a trip.|"
    "They play hide and seek.|They cook a meal together.|Someone is sick and gets well."
)
HELPERS = _phrases(
    "mother|father|grandmother|grandfather|sister|brother|teacher|friend|neighbour|uncle|aunt|baker|farmer"
)
DEEDS = _phrases(
    "went to the park|looked out of the window|woke up early|went for a walk|played in the garden|walked to school|"
    "sat under a tree|went to the market|climbed a hill|heard a strange sound|found a {object}|saw a {object}|"
    "wanted a {object}|lost a {object}|made a {object}|got a {object} from {helper}|met a {animal}|"
    "saw a small {animal}|heard a {animal} cry|helped {helper} in the kitchen|went to the beach|could not sleep|"
    "wanted to play outside|was looking for a friend"
)

THINGS = _phrases(
    "the sun|the moon|rain|snow|wind|a rainbow|a cloud|the sea|a river|a mountain|a tree|a flower|a seed|grass|"
    "a farm|a school|a library|a hospital|a bridge|a train|a plane|a boat|a bus|a bike|a clock|a book|a map|"
    "a garden|bread|milk|cheese|honey|an egg|an apple|soup|rice|salt|sugar|water|ice|fire|a lamp|a mirror|a bed|"
    "a coat|shoes|a hat|a ball|a kite|a drum|a song|a picture|paint|paper|glass|wood|gold|a stone|sand|a shell|"
    "a star|a planet|winter|summer|spring|autumn|night|a birthday|a holiday|a friend|a family|a teacher|a doctor|"
    "a baker|a farmer|a firefighter|a cook|a letter|money|music|a game|a puzzle|a dream|a shadow|a nest|a house|"
    "a door|a wheel|a key"
)
ACTIVITIES = _phrases(
    "brush my teeth|make a sandwich|plant a seed|draw a cat|clean my room|make a new friend|wash my hands|"
    "set the table|bake a cake|feed a dog|take care of a plant|fly a kite|learn to swim|ride a bike|tie my shoes|"
    "fall asleep|wake up early|make soup|paint a picture|build a snowman|write a letter|be a good friend|"
    "help my mother|share my toys|cross the road|stay warm in winter|stay cool in summer|count to ten|learn a song|"
    "read more books|make lemonade|wrap a gift|cheer up a friend|say sorry|tell the time|fold a paper boat|"
    "grow tomatoes|wash a cup|find a lost toy|be brave"
)
WHYS = _phrases(
    "is the sky blue|is the grass green|do birds sing|do cats sleep so much|do dogs bark|do we sleep|do we eat|"
    "do leaves fall|is snow white|is the sea salty|do bees make honey|do we wear coats|is fire hot|is ice cold|"
    "does the moon shine|do we go to school|do stars shine|do flowers smell good|do fish swim|do ducks like water|"
    "do we brush our teeth|do babies cry|do we laugh|does it rain|do boats float|do bears sleep in winter|"
    "do rabbits have long ears|do owls come out at night|do we say thank you|do trees need water|do cows give milk|"
    "is the sun warm|do we have birthdays|do we need friends|do people read books|do we drink water|is bread soft|"
    "do frogs jump|does wind blow|do we wash"
)
ASKERS = _phrases(
    "Hello!|Hi!|Please tell me.|I want to know.|Can you help me?|My teacher asked me this.|I am five years old.|"
    "I am six years old.|My sister wants to know.|My brother wants to know.|My friend asked me.|"
    "We talked about this at school.|I have a question.|Good morning!|Good evening!|I was wondering.|"
    "My little cousin asked me this.|Let us talk."
)
MOODS = _phrases(
    "I am {feeling} today.|My {helper} is {feeling}.|I saw a {animal} today.|I have a {object}.|"
    "I lost my {object}.|My friend has a {object}.|I want a {animal}.|I dreamed of a {animal}.|"
    "My {animal} is {feeling}.|It is a {weather} day.|I played with my {helper} today.|"
    "My {helper} gave me a {object}."
)
MOOD_ASKS = _phrases(
    "What should I do?|What do you think?|Can you say something nice?|What can we do now?|What would you do?|"
    "Is that good?|Can you give me an idea?"
)


THING_QUESTIONS = _phrases(
    "What is {thing}?|Tell me about {thing}.|What can you tell me about {thing}?|Why do people like {thing}?"
)
ACTIVITY_QUESTIONS = _phrases(
    "How do I {activity}?|How can I {activity}?|Can you help me {activity}?|Why should I {activity}?"
)
WHY_QUESTIONS = _phrases("Why {why}?")
ANIMAL_QUESTIONS = _phrases(
    "What does {an_animal} eat?|Where does {an_animal} live?|Tell me about {an_animal}.|"
    "What does {an_animal} do all day?|Is {an_animal} a good pet?"
)


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
