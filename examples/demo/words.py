"""The words that prompts are put together from: who, where, what with, how it feels, what is asked.

Small words of a child's world, for the writing model keeps to the words that it is given.
"""


def phrases(text: str) -> list[str]:
    """Returns the phrases between the bars."""
    return text.split("|")


GIRLS = phrases(
    "Anna|Lily|Mia|Emma|Sara|Lucy|Rosa|Nora|Ella|Ruby|Zoe|Amy|Kate|Jane|Molly|Daisy|Grace|Ivy|Clara|May|Tina|Sue|"
    "Eva|Ada|Bella|Nina|Maria|Lena|Hana|Mei|Aisha|Priya|Sofia|Olga|Ines|Freya|Leila|Yuki|Amina|Dora"
)
BOYS = phrases(
    "Tom|Ben|Sam|Max|Tim|Jack|Leo|Finn|Luke|Adam|Noah|Joe|Dan|Peter|Paul|Oscar|Hugo|Theo|Bob|Bill|Nick|Jim|Omar|"
    "Ravi|Juan|Kenji|Li|Ivan|Marco|Pablo|Ali|Karl|Otto|Emil|David|Henry|Felix|Toby|Rory|Anton"
)
ANIMALS = phrases(
    "cat|dog|rabbit|bear|fox|mouse|duck|frog|bird|owl|pig|cow|horse|sheep|goat|lion|tiger|monkey|elephant|turtle|"
    "squirrel|hedgehog|beaver|deer|penguin|whale|fish|crab|bee|ant|butterfly|snail|hen|kitten|puppy|lamb|donkey|"
    "swan|otter|mole|bat|wolf|panda|koala|camel|parrot|goose|seal|dolphin|ladybug|worm"
)
PET_NAMES = phrases(
    "Pip|Spot|Coco|Dot|Fluff|Buddy|Snow|Sunny|Biscuit|Pepper|Bobo|Milo|Nibbles|Ginger|Patch|Honey|Button|Waddle|"
    "Hoppy|Fuzzy|Mimi|Zip|Bubbles|Berry|Tiny|Pebble|Rusty|Shadow|Star|Cookie|Peanut|Misty|Clover|Rocky"
)
NATURES = phrases(
    "little|shy|brave|kind|curious|happy|sleepy|hungry|clever|funny|lonely|busy|careful|playful|gentle|quiet|noisy|"
    "proud|silly|grumpy|young|small|quick|slow|lazy|friendly"
)
PLACES = phrases(
    "in a small house near the forest|on a green farm|in a little town by the sea|in a tall tree|near a blue lake|"
    "in a big city|on a hill|by the river|in a warm barn|in a village in the mountains|in a garden full of flowers|"
    "in a red house|at the edge of the wood|in a cozy hole under a tree|on a small island|next to a school|"
    "near the park|in a house with a yellow door|by a pond|above a bakery"
)
OBJECTS = phrases(
    "red ball|blue kite|little boat|teddy bear|toy car|yellow hat|shiny stone|big box|old key|drum|green leaf|"
    "warm coat|picture book|birthday cake|apple|basket of eggs|balloon|paper plane|wooden train|doll|small seed|"
    "bell|bucket|blanket|lamp|cup of milk|pair of boots|umbrella|flower|jar of honey|carrot|snowman|swing|sled|map|"
    "feather|shell|ladder|wagon|puzzle|crayon|song|bike|scarf|cookie|pumpkin|nest|lost mitten|magnet|mirror|"
    "whistle|bag of nuts|pot of soup|tent|ring|rope|block tower|paint brush|letter|spoon"
)
WEATHERS = phrases("sunny|rainy|windy|snowy|cold|warm|cloudy|foggy|bright|quiet|hot|stormy")
TIMES = phrases("morning|day|afternoon|evening|Saturday|Sunday|night")
FEELINGS = phrases(
    "sad|happy|scared|angry|excited|proud|tired|lonely|worried|surprised|shy|hungry|bored|jealous|sorry|glad"
)
MORALS = phrases(
    "sharing is fun|friends help each other|it is good to tell the truth|it is fine to be different|"
    "you should never give up|kind words help|it is good to say sorry|being brave does not mean having no fear|"
    "we should take care of animals|it is good to ask for help|small ones can do big things|patience pays|"
    "we should listen to our parents|cleaning up can be fun|trying new things is good|everyone makes mistakes|"
    "work is lighter together|a promise should be kept|we should wait for our turn|home is the best place|"
    "it is nice to give|rest is good for you|we should be careful with other people's things|"
    "every day brings something new"
)
SHAPES = phrases(
    "The hero loses it and looks for it everywhere.|The hero meets a new friend.|"
    "Something breaks and they mend it.|Two friends quarrel and make up.|There is a surprise at the end.|"
    "The hero gets lost and finds the way home.|The hero helps a smaller animal.|They plan a party.|"
    "The hero learns to do something hard.|A storm comes and they hide.|They build something together.|"
    "The hero is afraid at first.|The hero wants to keep it but then gives it away.|Grandmother tells what to do.|"
    "They race, and the slow one wins.|A neighbour needs help.|The hero cannot sleep.|They go on a trip.|"
    "They play hide and seek.|They cook a meal together.|Someone is sick and gets well."
)
HELPERS = phrases(
    "mother|father|grandmother|grandfather|sister|brother|teacher|friend|neighbour|uncle|aunt|baker|farmer"
)
DEEDS = phrases(
    "went to the park|looked out of the window|woke up early|went for a walk|played in the garden|walked to school|"
    "sat under a tree|went to the market|climbed a hill|heard a strange sound|found a {object}|saw a {object}|"
    "wanted a {object}|lost a {object}|made a {object}|got a {object} from {helper}|met a {animal}|"
    "saw a small {animal}|heard a {animal} cry|helped {helper} in the kitchen|went to the beach|could not sleep|"
    "wanted to play outside|was looking for a friend"
)

THINGS = phrases(
    "the sun|the moon|rain|snow|wind|a rainbow|a cloud|the sea|a river|a mountain|a tree|a flower|a seed|grass|"
    "a farm|a school|a library|a hospital|a bridge|a train|a plane|a boat|a bus|a bike|a clock|a book|a map|"
    "a garden|bread|milk|cheese|honey|an egg|an apple|soup|rice|salt|sugar|water|ice|fire|a lamp|a mirror|a bed|"
    "a coat|shoes|a hat|a ball|a kite|a drum|a song|a picture|paint|paper|glass|wood|gold|a stone|sand|a shell|"
    "a star|a planet|winter|summer|spring|autumn|night|a birthday|a holiday|a friend|a family|a teacher|a doctor|"
    "a baker|a farmer|a firefighter|a cook|a letter|money|music|a game|a puzzle|a dream|a shadow|a nest|a house|"
    "a door|a wheel|a key"
)
ACTIVITIES = phrases(
    "brush my teeth|make a sandwich|plant a seed|draw a cat|clean my room|make a new friend|wash my hands|"
    "set the table|bake a cake|feed a dog|take care of a plant|fly a kite|learn to swim|ride a bike|tie my shoes|"
    "fall asleep|wake up early|make soup|paint a picture|build a snowman|write a letter|be a good friend|"
    "help my mother|share my toys|cross the road|stay warm in winter|stay cool in summer|count to ten|learn a song|"
    "read more books|make lemonade|wrap a gift|cheer up a friend|say sorry|tell the time|fold a paper boat|"
    "grow tomatoes|wash a cup|find a lost toy|be brave"
)
WHYS = phrases(
    "is the sky blue|is the grass green|do birds sing|do cats sleep so much|do dogs bark|do we sleep|do we eat|"
    "do leaves fall|is snow white|is the sea salty|do bees make honey|do we wear coats|is fire hot|is ice cold|"
    "does the moon shine|do we go to school|do stars shine|do flowers smell good|do fish swim|do ducks like water|"
    "do we brush our teeth|do babies cry|do we laugh|does it rain|do boats float|do bears sleep in winter|"
    "do rabbits have long ears|do owls come out at night|do we say thank you|do trees need water|do cows give milk|"
    "is the sun warm|do we have birthdays|do we need friends|do people read books|do we drink water|is bread soft|"
    "do frogs jump|does wind blow|do we wash"
)
ASKERS = phrases(
    "Hello!|Hi!|Please tell me.|I want to know.|Can you help me?|My teacher asked me this.|I am five years old.|"
    "I am six years old.|My sister wants to know.|My brother wants to know.|My friend asked me.|"
    "We talked about this at school.|I have a question.|Good morning!|Good evening!|I was wondering.|"
    "My little cousin asked me this.|Let us talk."
)
MOODS = phrases(
    "I am {feeling} today.|My {helper} is {feeling}.|I saw a {animal} today.|I have a {object}.|"
    "I lost my {object}.|My friend has a {object}.|I want a {animal}.|I dreamed of a {animal}.|"
    "My {animal} is {feeling}.|It is a {weather} day.|I played with my {helper} today.|"
    "My {helper} gave me a {object}."
)
MOOD_ASKS = phrases(
    "What should I do?|What do you think?|Can you say something nice?|What can we do now?|What would you do?|"
    "Is that good?|Can you give me an idea?"
)


THING_QUESTIONS = phrases(
    "What is {thing}?|Tell me about {thing}.|What can you tell me about {thing}?|Why do people like {thing}?"
)
ACTIVITY_QUESTIONS = phrases(
    "How do I {activity}?|How can I {activity}?|Can you help me {activity}?|Why should I {activity}?"
)
WHY_QUESTIONS = phrases("Why {why}?")
ANIMAL_QUESTIONS = phrases(
    "What does {an_animal} eat?|Where does {an_animal} live?|Tell me about {an_animal}.|"
    "What does {an_animal} do all day?|Is {an_animal} a good pet?"
)
