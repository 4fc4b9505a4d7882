"""Random identifiers and literals.

Most names and strings are made up from syllables, so that the only way to predict them is to copy them from the prompt.
"""
import keyword

ONSETS = "b br c ch cl d dr f fl g gl gr h j k kl l m n p pl pr qu r s sh sk sl sp st t th tr v w y z".split()
VOWELS = "a e i o u a e i o ai ea ee oo ou".split()
CODAS = ["", "", "", "l", "m", "n", "p", "r", "s", "t", "x", "ck", "nd", "rt", "sk", "st"]

COMMON = {
    "int": "a b c x y z n m p q num value number left right first second amount level score age size".split(),
    "list": "nums numbers values items xs data arr lst seq array scores prices points marks".split(),
    "words": "words names tokens strings parts labels lines texts tags".split(),
    "str": "s text word line string name sentence phrase title label t msg".split(),
    "dict": "d mapping table stock prices ages scores counts records".split(),
}
POOL_OF_KIND = {"int": "int", "pos": "int", "small": "int", "list": "list", "nelist": "list", "words": "words",
                "newords": "words", "str": "str", "nestr": "str", "dict": "dict", "nedict": "dict"}
HINTS = {"int": ["int"], "list": ["list", "list[int]"], "words": ["list", "list[str]"], "str": ["str"],
         "dict": ["dict"]}

NOUNS = """apple barn basket bird board book bottle bridge bus cake camera car card castle chair circle city clock cloud
coat coin corn cup desk dog door dress engine farm field film fish flag floor flower forest frame garden gate glass gold
grain group guest hand hat hill home horse hour island jacket key king lake lamp leaf letter light lion map market metal
milk mirror moon morning mountain music nail night note ocean office order page paint paper park path pen person phone
picture pilot plan plant plate player pocket queue rain river road rock roof room rope row salt sand school seed shape
ship shirt shop shoe silver snow song star station steel stone storm street sugar sun table team tent ticket tool tower
town track train tree truck valley wall watch water wheel wind window wing winter wood yard year user file host port
device token node edge task job block batch frame pixel packet buffer cell""".split()
VERBS = """add apply build calc check clean compute convert count cut do drop fetch find fix format get handle join keep
label list load make map mark merge move pack parse pick process put rank read run scan select set show solve sort split
sum take test trim update use work""".split()
ADJECTIVES = """big blue bright clean cold cool dark deep dry early fast final fresh full good green heavy high hot last
late light little long loud low main max min new next odd old open plain quick raw red round safe sharp short slow small
soft strong sweet tall total warm wide young""".split()
GENERIC_FUNCTIONS = "f g h func solve run task compute process helper answer work calc my_func solution".split()
CAPITALS = "Hello Welcome Good Paris Cairo Omar Sara Monday Friday Alpha Beta Total Error Done None OK".split()
ARABIC_WORDS = """نعم لا كبير صغير جيد سيئ مرحبا أهلا حار بارد صحيح خطأ طويل قصير ناجح راسب سلام يوم ليل بيت كتاب قلم
باب أحمر أزرق أخضر شمس قمر بحر جبل سريع بطيء فارغ ممتلئ""".split()
SEPARATORS = [", ", ",", "-", " ", "_", "/", ":", ";", "+", " - ", ", ", " and ", "|", "::", ".", "--", "*", " / ", "="]
PUNCTUATION = list("!?.,;:-_#@*+/%&= ")
RESERVED_WORDS = set(keyword.kwlist) | {
    "abs", "all", "any", "dict", "enumerate", "int", "len", "list", "max", "min", "range", "set", "sorted", "str",
    "sum", "tuple", "zip"}


def syllables(rng, low, high):
    """A made-up word of low..high syllables."""
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.randint(low, high)))


def plain_word(rng):
    """A real or made-up word in lower case."""
    if rng.random() < 0.5:
        return syllables(rng, 1, rng.choice([1, 1, 2]))
    return rng.choice(rng.choice([NOUNS, NOUNS, VERBS, ADJECTIVES]))


def identifier(rng):
    """A random snake_case identifier."""
    draw = rng.random()
    if draw < 0.45:
        name = syllables(rng, 1, rng.choice([2, 2, 2, 3]))
    elif draw < 0.6:
        name = rng.choice(NOUNS) + rng.choice(["", "", "s"])
    elif draw < 0.92:
        name = plain_word(rng) + "_" + plain_word(rng)
    else:
        name = plain_word(rng) + rng.choice(["_", ""]) + str(rng.randint(0, 99))
    return identifier(rng) if name in RESERVED_WORDS else name


def argument_name(rng, kind):
    """A name for an argument of the kind: common for it in a third of the draws, otherwise random."""
    if rng.random() < 0.33:
        return rng.choice(COMMON[POOL_OF_KIND[kind]])
    return identifier(rng)


def function_name(rng, telling, taken):
    """A function name that is not taken: sometimes one that tells the task, mostly random."""
    name = draw_function_name(rng, telling)
    while name in taken or name in RESERVED_WORDS:
        name = draw_function_name(rng, telling)
    return name


def draw_function_name(rng, telling):
    """One draw of function_name()."""
    draw = rng.random()
    if draw < 0.15:
        return rng.choice(telling)
    if draw < 0.3:
        return rng.choice(GENERIC_FUNCTIONS)
    if draw < 0.5:
        return rng.choice(VERBS) + "_" + plain_word(rng)
    return identifier(rng)


def natural(rng):
    """1..9999, mostly short."""
    return rng.randint(1, 10 ** rng.choices([1, 2, 3, 4], [28, 36, 20, 16])[0] - 1)


def word_text(rng, language):
    """The text of a word-like string literal."""
    draw = rng.random()
    if language == "ar" and draw < 0.2:
        return rng.choice(ARABIC_WORDS)
    if draw < 0.7:
        return plain_word(rng)
    if draw < 0.78:
        return rng.choice(CAPITALS)
    if draw < 0.84:
        return plain_word(rng).upper()
    if draw < 0.9:
        return plain_word(rng).capitalize()
    if draw < 0.94:
        return plain_word(rng) + rng.choice([" ", "-", "_"]) + plain_word(rng)
    return plain_word(rng) + rng.choice([str(rng.randint(0, 999)), "!", "?", ".", ": ", "..."])


def fragment_text(rng):
    """The text of a short string literal: a letter, a few letters, a mark or a word."""
    draw = rng.random()
    if draw < 0.5:
        return rng.choice("abcdefghijklmnopqrstuvwxyz" * 3 + "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + "0123456789")
    if draw < 0.72:
        return syllables(rng, 1, 1)
    if draw < 0.85:
        return rng.choice(PUNCTUATION)
    return plain_word(rng)


def literal(text):
    """The text as a Python literal in single quotes."""
    return "'" + text + "'"


def constant(rng, kind, language, drawn):
    """The source text of a random constant; `drawn` holds the values already drawn, for kinds such as `z>k`."""
    if kind == "n":
        return str(natural(rng))
    if kind == "z":
        return str(rng.choices([natural(rng), -natural(rng), 0], [78, 19, 3])[0])
    if kind == "z>k":
        return str(int(drawn["k"]) + natural(rng))
    if kind == "d":
        return str(rng.choices([rng.randint(2, 12), rng.randint(2, 99), natural(rng) + 1], [60, 30, 10])[0])
    if kind == "s":
        return str(rng.choices([rng.randint(2, 9), rng.randint(2, 30)], [80, 20])[0])
    if kind == "digit":
        return str(rng.randint(0, 9))
    if kind == "default":
        return rng.choice(["-1", "0", "None", "None", str(rng.choice([1, 1, -1]) * natural(rng))])
    if kind == "sep":
        return literal(rng.choice(SEPARATORS))
    if kind == "frag":
        return literal(fragment_text(rng))
    if kind == "word":
        return literal(rng.choice(CAPITALS) if rng.random() < 0.4 else plain_word(rng).capitalize())
    if kind == "key":
        return literal(identifier(rng))
    if kind == "w":
        return literal(word_text(rng, language))
    raise ValueError(f"unknown constant kind {kind}")
