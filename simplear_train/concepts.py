"""What the default model can draw: one line per concept.

A line holds the noun, its plural, other words that people use for it, and the icons that show it. Icons were chosen
by eye: an icon is here when somebody who does not know the name would still say the noun. No flags, no people, no
logos. `recolour` names the icon whose main hue may be replaced ("a blue car"); concepts without one are only ever
drawn in their own colours, so that "a blue banana" is a request the model has never been promised to meet.

Nothing here knows about pixels; sprites.py rasterises the icons and emoji_scenes.py composes them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Concept:
    noun: str
    plural: str  # equal to noun for words that are already plural or uncountable
    synonyms: tuple[str, ...]
    icons: tuple[str, ...]  # "noto:cat-face" or "fluent:cat"
    recolour: str | None = None

    @property
    def is_mass(self) -> bool:
        return self.plural == self.noun


# noun | plural ("+" = regular, "=" = no plural) | synonyms | icons, "*" marks the one that may be recoloured
_TABLE = """
cat        | +        | kitty, kitten        | noto:cat-face noto:cat
dog        | +        | puppy                | noto:dog-face noto:dog
horse      | +        | pony                 | noto:horse fluent:horse
cow        | +        |                      | noto:cow-face fluent:cow
pig        | +        | piglet               | noto:pig-face fluent:pig
rabbit     | +        | bunny                | noto:rabbit-face
mouse      | mice     |                      | noto:mouse-face fluent:mouse
bear       | +        | brown bear           | noto:bear
panda      | +        | panda bear           | noto:panda
fox        | foxes    | red fox              | noto:fox
lion       | +        |                      | noto:lion
tiger      | +        |                      | noto:tiger-face
monkey     | +        | ape                  | noto:monkey-face
elephant   | +        |                      | noto:elephant fluent:elephant
giraffe    | +        |                      | noto:giraffe
zebra      | +        |                      | noto:zebra
koala      | +        |                      | noto:koala
frog       | +        | toad                 | noto:frog
turtle     | +        | tortoise             | noto:turtle fluent:turtle
snake      | +        |                      | fluent:snake
dinosaur   | +        |                      | noto:sauropod
whale      | +        |                      | noto:spouting-whale fluent:spouting-whale
dolphin    | +        |                      | noto:dolphin
fish       | =        |                      | fluent:fish* noto:fish
octopus    | octopuses|                      | fluent:octopus
crab       | +        |                      | fluent:crab
snail      | +        |                      | noto:snail
butterfly  | butterflies |                   | noto:butterfly*
bee        | +        | honeybee             | noto:honeybee
ladybug    | +        | ladybird, beetle     | fluent:lady-beetle
bird       | +        |                      | noto:bird*
penguin    | +        |                      | noto:penguin
duck       | +        |                      | noto:duck
owl        | +        |                      | noto:owl
flamingo   | +        |                      | fluent:flamingo
chick      | +        | baby chicken         | noto:front-facing-baby-chick
unicorn    | +        |                      | noto:unicorn
squirrel   | +        | chipmunk             | noto:chipmunk
apple      | +        |                      | noto:red-apple* fluent:red-apple
banana     | +        |                      | noto:banana
orange     | +        | tangerine            | noto:tangerine
lemon      | +        |                      | noto:lemon
pear       | +        |                      | noto:pear
cherries   | =        |                      | noto:cherries
strawberry | strawberries |                  | noto:strawberry
grapes     | =        |                      | noto:grapes
watermelon | +        | slice of watermelon  | noto:watermelon
pineapple  | +        |                      | noto:pineapple
avocado    | +        |                      | fluent:avocado
tomato     | tomatoes |                      | noto:tomato
carrot     | +        |                      | noto:carrot
corn       | =        | ear of corn          | noto:ear-of-corn
broccoli   | =        |                      | noto:broccoli
mushroom   | +        | toadstool            | noto:mushroom
bread      | =        | loaf of bread        | noto:bread
cheese     | =        | piece of cheese      | noto:cheese-wedge
hamburger  | +        | burger, cheeseburger | noto:hamburger
french fries | =      | fries, chips         | noto:french-fries
pizza      | +        | slice of pizza       | noto:pizza
hot dog    | +        | hotdog               | noto:hot-dog
egg        | +        |                      | noto:egg
cookie     | +        | biscuit              | noto:cookie
doughnut   | +        | donut                | noto:doughnut
cupcake    | +        | muffin               | noto:cupcake
cake       | +        | birthday cake        | noto:birthday-cake
ice cream  | =        | ice cream cone       | noto:soft-ice-cream
cup of coffee | cups of coffee | coffee, cup of tea | noto:hot-beverage
teapot     | +        |                      | noto:teapot*
car        | +        | automobile           | noto:automobile*
taxi       | +        | cab                  | noto:taxi
bus        | buses    |                      | noto:bus
truck      | +        | lorry                | noto:delivery-truck
fire truck | +        | fire engine          | noto:fire-engine
bicycle    | +        | bike                 | noto:bicycle
train      | +        |                      | noto:train
airplane   | +        | plane, aeroplane     | noto:airplane
helicopter | +        |                      | fluent:helicopter
rocket     | +        | spaceship            | noto:rocket
sailboat   | +        | boat                 | noto:sailboat
ship       | +        |                      | noto:ship
ufo        | +        | flying saucer        | noto:flying-saucer
chair      | +        |                      | noto:chair
couch      | couches  | sofa                 | noto:couch-and-lamp*
clock      | +        | alarm clock          | noto:alarm-clock
book       | +        |                      | noto:closed-book*
key        | +        |                      | noto:key
umbrella   | +        |                      | noto:umbrella*
backpack   | +        | school bag           | noto:backpack*
shirt      | +        | t-shirt              | fluent:t-shirt*
dress      | dresses  |                      | noto:dress*
hat        | +        | top hat              | noto:top-hat
crown      | +        |                      | noto:crown
diamond    | +        | gem                  | fluent:gem-stone
phone      | +        | mobile phone, smartphone | noto:mobile-phone
laptop     | +        | computer             | noto:laptop
television | +        | tv                   | noto:television
camera     | +        |                      | noto:camera
light bulb | +        | lamp                 | noto:light-bulb
soccer ball| +        | football             | noto:soccer-ball
basketball | +        |                      | noto:basketball
balloon    | +        |                      | noto:balloon*
gift       | +        | present              | noto:wrapped-gift
teddy bear | +        |                      | noto:teddy-bear
guitar     | +        | electric guitar      | noto:guitar
house      | +        | home                 | noto:house
castle     | +        |                      | noto:castle
tree       | +        |                      | noto:deciduous-tree
pine tree  | +        | fir tree             | noto:evergreen-tree
palm tree  | +        |                      | noto:palm-tree
cactus     | cactuses |                      | noto:cactus
sunflower  | +        |                      | noto:sunflower
tulip      | +        | flower               | fluent:tulip*
rose       | +        |                      | noto:rose*
star       | +        |                      | noto:star*
sun        | +        |                      | noto:sun
moon       | +        | crescent moon        | noto:crescent-moon
rainbow    | +        |                      | noto:rainbow
snowman    | snowmen  |                      | noto:snowman
fire       | +        | flame                | noto:fire
heart      | +        |                      | noto:red-heart*
ghost      | +        |                      | noto:ghost
robot      | +        |                      | noto:robot
pumpkin    | +        | jack-o-lantern       | noto:jack-o-lantern
"""


def _parse(line: str) -> Concept:
    noun, plural, synonyms, icons = (part.strip() for part in line.split("|"))
    starred = [icon for icon in icons.split() if icon.endswith("*")]
    return Concept(
        noun=noun,
        plural={"+": noun + "s", "=": noun}.get(plural, plural),
        synonyms=tuple(word.strip() for word in synonyms.split(",") if word.strip()),
        icons=tuple(icon.rstrip("*") for icon in icons.split()),
        recolour=starred[0].rstrip("*") if starred else None,
    )


CONCEPTS: tuple[Concept, ...] = tuple(_parse(line) for line in _TABLE.strip().splitlines())

# Hue in degrees, then factors on saturation and value. White is missing on purpose: it cannot be told from a pale
# background. Orange and brown are missing because at 16 pixels per token they are too close to red and yellow.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0, 1.0, 1.0),
    "yellow": (50, 1.0, 1.15),
    "green": (120, 0.9, 0.85),
    "blue": (215, 1.0, 1.0),
    "purple": (275, 0.8, 0.9),
    "pink": (330, 0.55, 1.15),
    "black": (0, 0.0, 0.35),
}
