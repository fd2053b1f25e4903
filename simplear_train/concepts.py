"""What the default model can draw: one line per concept.

A line holds the noun, its plural, other words that people use for it, and the icons that show it. Icons were chosen
by eye: an icon is here when somebody who does not know the name would still say the noun. No flags, no people, no
logos. `recolour` names the icon whose main hue may be replaced ("a blue car"); concepts without one are drawn in their
own colours, so that "a blue banana" is a request the model has never been promised to meet. `tint` is such an icon, too,
but only wide scenes show it in other hues and nobody asks for it: a model should meet a hue on so many shapes that it
cannot learn them by heart, and has to learn what a hue is. It stands at all icons that are not mostly white, grey or black.

The list is short because a small tokenizer has to know every sprite by heart: each further one takes training time
from all others. Thin icons, pale ones and look-alikes were left out first.

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
    tint: str | None = None

    @property
    def any_hue(self) -> str | None:
        """The icon that wide scenes show in further hues."""
        return self.recolour or self.tint

    @property
    def is_mass(self) -> bool:
        return self.plural == self.noun


# noun | plural ("+" = regular, "=" = no plural) | synonyms | icons, "*" marks the one that may be recoloured, "~" the one that may be tinted
_TABLE = """
cat          | +            | kitty, kitten            | noto:cat-face~
dog          | +            | puppy                    | noto:dog-face~
horse        | +            | pony                     | noto:horse~
cow          | +            |                          | noto:cow-face~
pig          | +            | piglet                   | noto:pig-face~
rabbit       | +            | bunny                    | noto:rabbit-face
bear         | +            | brown bear               | noto:bear~
panda        | +            | panda bear               | noto:panda
fox          | foxes        | red fox                  | noto:fox~
lion         | +            |                          | noto:lion~
tiger        | +            |                          | noto:tiger-face~
monkey       | +            | ape                      | noto:monkey-face~
elephant     | +            |                          | noto:elephant
frog         | +            | toad                     | noto:frog~
turtle       | +            | tortoise                 | noto:turtle~
dinosaur     | +            |                          | noto:sauropod~
whale        | +            |                          | noto:spouting-whale~
fish         | =            |                          | fluent:fish*
crab         | +            |                          | fluent:crab~
butterfly    | butterflies  |                          | noto:butterfly*
bee          | +            | honeybee                 | noto:honeybee~
ladybug      | +            | ladybird, beetle         | fluent:lady-beetle~
bird         | +            |                          | noto:bird*
penguin      | +            |                          | noto:penguin
duck         | +            |                          | noto:duck
owl          | +            |                          | noto:owl~
chick        | +            | baby chicken             | noto:front-facing-baby-chick~
unicorn      | +            |                          | noto:unicorn
apple        | +            |                          | noto:red-apple*
banana       | +            |                          | noto:banana~
orange       | +            | tangerine                | noto:tangerine~
lemon        | +            |                          | noto:lemon~
pear         | +            |                          | noto:pear~
cherries     | =            |                          | noto:cherries~
strawberry   | strawberries |                          | noto:strawberry~
grapes       | =            |                          | noto:grapes~
watermelon   | +            | slice of watermelon      | noto:watermelon~
pineapple    | +            |                          | noto:pineapple~
tomato       | tomatoes     |                          | noto:tomato~
carrot       | +            |                          | noto:carrot~
broccoli     | =            |                          | noto:broccoli~
mushroom     | +            | toadstool                | noto:mushroom~
hamburger    | +            | burger, cheeseburger     | noto:hamburger~
french fries | =            | fries, chips             | noto:french-fries~
pizza        | +            | slice of pizza           | noto:pizza~
hot dog      | +            | hotdog                   | noto:hot-dog~
doughnut     | +            | donut                    | noto:doughnut~
cake         | +            | birthday cake            | noto:birthday-cake~
ice cream    | =            | ice cream cone           | noto:soft-ice-cream~
teapot       | +            |                          | noto:teapot~
car          | +            | automobile               | noto:automobile*
bus          | buses        |                          | noto:bus~
truck        | +            | lorry                    | noto:delivery-truck~
train        | +            |                          | noto:train~
airplane     | +            | plane, aeroplane         | noto:airplane~
rocket       | +            | spaceship                | noto:rocket~
sailboat     | +            | boat                     | noto:sailboat~
ufo          | +            | flying saucer            | noto:flying-saucer
couch        | couches      | sofa                     | noto:couch-and-lamp~
clock        | +            | alarm clock              | noto:alarm-clock~
book         | +            |                          | noto:closed-book*
key          | +            |                          | noto:key~
umbrella     | +            |                          | noto:umbrella*
backpack     | +            | school bag               | noto:backpack~
shirt        | +            | t-shirt                  | fluent:t-shirt*
hat          | +            | top hat                  | noto:top-hat
crown        | +            |                          | noto:crown~
diamond      | +            | gem                      | fluent:gem-stone~
phone        | +            | mobile phone, smartphone | noto:mobile-phone
television   | +            | tv                       | noto:television
camera       | +            |                          | noto:camera
light bulb   | +            | lamp                     | noto:light-bulb~
soccer ball  | +            | football                 | noto:soccer-ball
basketball   | +            |                          | noto:basketball~
balloon      | +            |                          | noto:balloon*
gift         | +            | present                  | noto:wrapped-gift~
guitar       | +            | electric guitar          | noto:guitar~
house        | +            | home                     | noto:house~
tree         | +            |                          | noto:deciduous-tree~
pine tree    | +            | fir tree                 | noto:evergreen-tree~
cactus       | cactuses     |                          | noto:cactus~
sunflower    | +            |                          | noto:sunflower~
rose         | +            |                          | noto:rose*
star         | +            |                          | noto:star~
sun          | +            |                          | noto:sun~
moon         | +            | crescent moon            | noto:crescent-moon~
rainbow      | +            |                          | noto:rainbow
snowman      | snowmen      |                          | noto:snowman
fire         | +            | flame                    | noto:fire~
heart        | +            |                          | noto:red-heart*
ghost        | +            |                          | noto:ghost
robot        | +            |                          | noto:robot
pumpkin      | +            | jack-o-lantern           | noto:jack-o-lantern~
"""


def _parse(line: str) -> Concept:
    noun, plural, synonyms, icons = (part.strip() for part in line.split("|"))
    marked = {icon[-1]: icon[:-1] for icon in icons.split() if icon[-1] in "*~"}
    return Concept(
        noun=noun,
        plural={"+": noun + "s", "=": noun}.get(plural, plural),
        synonyms=tuple(word.strip() for word in synonyms.split(",") if word.strip()),
        icons=tuple(icon.rstrip("*~") for icon in icons.split()),
        recolour=marked.get("*"),
        tint=marked.get("~"),
    )


CONCEPTS: tuple[Concept, ...] = tuple(_parse(line) for line in _TABLE.strip().splitlines())

# Hue in degrees, then factors on saturation and value. White is missing on purpose: it cannot be told from a pale
# background. Orange, brown and black are missing because at 16 pixels per token they are too close to red, yellow and grey.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0, 1.0, 1.0),
    "yellow": (50, 1.0, 1.15),
    "green": (120, 0.9, 0.85),
    "blue": (215, 1.0, 1.0),
    "purple": (275, 0.8, 0.9),
    "pink": (330, 0.55, 1.15),
}

# Things that look like one of COLOURS before any hue is replaced; free_scenes.named_colours finds them in the art.
OWN_COLOURS: dict[str, str] = {"car": "red", "book": "red", "balloon": "red", "rose": "red", "heart": "red"}

# Hues between those of COLOURS. Only the widest scenes show them; no prompt of EmojiEval asks for one.
FURTHER_HUES: dict[str, tuple[float, float, float]] = {
    "lime": (85, 1.0, 1.05),
    "turquoise": (178, 0.95, 0.95),
    "indigo": (245, 0.95, 0.95),
    "magenta": (305, 0.9, 1.0),
}
HUES = {**COLOURS, **FURTHER_HUES}
