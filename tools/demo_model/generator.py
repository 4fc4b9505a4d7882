"""Seeded generator of small Python function tasks with English or Arabic docstrings.

A task is a prompt (signature and docstring) and an answer (the function body).  Its *combination* is everything that
determines the program: function name, argument names and body, constants included.  About one combination in 24 is
reserved by hash; reserved combinations never enter the training stream, and the held-out problems come only from them.
"""
import hashlib
import random
import re
from dataclasses import dataclass, field

from grammar import SLOT, expand, fill, read_entries
from names import HINTS, POOL_OF_KIND, argument_name, constant, function_name
from pipelines import PIPELINES

RESERVED_ONE_IN = 24
PHRASE_FILES = {"predicates": "predicates.txt", "maps": "maps.txt", "string_predicates": "string_predicates.txt",
                "string_maps": "string_maps.txt"}
TEMPLATE_FILES = ["numbers", "choices", "loops", "lists", "strings", "dicts"]
SCALARS = {"int", "pos", "small", "str", "nestr"}

PHRASES = {kind: read_entries(file_name) for kind, file_name in PHRASE_FILES.items()}
TEMPLATES = [(f"{group}.{entry.name}", entry) for group in TEMPLATE_FILES for entry in read_entries(group + ".txt")]
PIPELINE_SHARE = 0.11

# What a map's imperative applies to, when it is no argument.
TARGETS = {
    "en": {"list": "$each $num $in {X}", "words": "$each $str $in {X}", "dict": "$each value <of|in> {X}",
           "NP": "<each of|all of|> the {NP}", "res": "<it|the result>", "them": "<each of them|each one|each|them>"},
    "ar": {"list": "كل <عدد|عنصر|قيمة> $in {X}", "words": "كل <نص|عنصر|كلمة> $in {X}", "dict": "كل قيمة في {X}",
           "NP": "كل <واحد|عنصر> من {NP}", "res": "<الناتج|النتيجة>", "them": "<كلا منها|كل واحد منها|كلا منهم>"},
}

# Words around the task that do not change it; {X} is the first argument.
PREFIX = {"en": "<Given {X}, |For {X}, |Here we |Simply |Please |Write code to |A helper: |Using {X}, >",
          "ar": "<معطى {X}، |من فضلك |ببساطة |لديك {X}: |المطلوب: |دالة مساعدة: |انطلاقا من {X}، >"}
NOTES = {
    "en": {"int": ["{X} is an <integer|int>.", "{X} <may|can> be negative."],
           "list": ["{X} is a list of <integers|numbers|ints>.", "The list <may|can> be empty.", "Do not change {X}."],
           "words": ["{X} is a list of <strings|words>.", "The list <may|can> be empty."],
           "str": ["{X} is a <string|text>.", "Mind the case of the letters.", "{X} <may|can> be empty."],
           "dict": ["{X} is a <dict|dictionary>.", "{X} <may|can> be empty."]},
    "ar": {"int": ["{X} عدد صحيح.", "قد يكون {X} سالبا."],
           "list": ["{X} قائمة <أعداد|أعداد صحيحة>.", "قد تكون القائمة فارغة.", "لا تغير {X}."],
           "words": ["{X} قائمة <نصوص|كلمات>.", "قد تكون القائمة فارغة."],
           "str": ["{X} <نص|سلسلة نصية>.", "قد يكون النص فارغا."],
           "dict": ["{X} قاموس.", "قد يكون القاموس فارغا."]},
}


@dataclass
class Phrase:
    """A predicate or map with its constants drawn."""
    entry: object
    values: dict

    def code(self, variable, key="code"):
        """Source text applied to the variable."""
        return fill(self.entry.one(key), lambda name, *_: variable if name == "v" else self.values[name])

    def words(self, rng, language, key, it=""):
        """A wording of the phrase."""
        prefix = "ar_" if language == "ar" else ""
        text = expand(rng, rng.choice(self.entry.all(prefix + key)), language)
        return fill(text, lambda name, *_: it if name == "it" else self.values[name])


@dataclass
class Task:
    """One drawn task."""
    template: str
    language: str
    function: str
    arguments: list  # (name, kind)
    doc: str
    body: str
    constants: list = field(default_factory=list)
    prompt: str = ""

    @property
    def answer(self):
        """The function body, indented."""
        return "\n".join("    " + line for line in self.body.split("\n"))

    @property
    def reserved(self):
        """Whether the combination is kept out of training."""
        key = f"{self.function}({', '.join(name for name, _ in self.arguments)})\n{self.body}"
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % RESERVED_ONE_IN == 0


def draw_constants(rng, pairs, language, taken):
    """Distinct constants for `k=kind` pairs; also appends them to `taken`."""
    values = {}
    for name, kind in pairs:
        value = constant(rng, kind, language, values)
        while value in taken and kind not in ("digit", "s", "default"):
            value = constant(rng, kind, language, values)
        values[name] = value
        taken.append(value)
    return values


def draw_phrase(rng, kind, language, taken, avoid=()):
    """A random phrase of the kind, different from those in `avoid`."""
    entry = rng.choice([entry for entry in PHRASES[kind] if entry.name not in avoid])
    return Phrase(entry, draw_constants(rng, entry.pairs("const", "="), language, taken))


class Filler:
    """Fills the slots of one template's body and wordings."""

    def __init__(self, rng, language, arguments, values, phrases):
        self.rng, self.language, self.arguments, self.values, self.phrases = rng, language, arguments, values, phrases

    def body(self, name, attribute, operand):
        """A slot of the body."""
        if name in self.phrases:
            variable = self.values.get(operand, operand)
            return self.phrases[name].code(variable, attribute or "code")
        return self.values[name]

    def wording(self, name, attribute, operand):
        """A slot of the docstring."""
        if name in ("NP", "PN"):
            return self.noun_phrase(with_container=name == "NP")
        if attribute == "do":
            return self.phrases[name].words(self.rng, self.language, "do", self.target(operand))
        if attribute:
            return self.phrases[name].words(self.rng, self.language, attribute)
        return self.values[name]

    def render(self, text):
        """Expands and fills a wording."""
        return fill(expand(self.rng, text, self.language), self.wording)

    def target(self, operand):
        """What `{M.do operand}` applies its imperative to."""
        kind = dict((slot, POOL_OF_KIND[kind]) for slot, kind in self.arguments).get(operand, operand)
        if kind in ("int", "str"):
            return self.values[operand]
        text = TARGETS[self.language][kind].replace("{X}", self.values.get(operand, ""))
        return self.render(text)

    def noun_phrase(self, with_container):
        """"even numbers in xs", for the first predicate and the first container."""
        slot, kind = next((s, k) for s, k in self.arguments if POOL_OF_KIND[k] in ("list", "words"))
        phrase = self.phrases["P" if "P" in self.phrases else "S"]
        noun = "$nums" if POOL_OF_KIND[kind] == "list" else "$strs"
        where = f" $in {self.values[slot]}" if with_container else ""
        if self.language == "en" and phrase.entry.all("adj") and self.rng.random() < 0.6:
            return self.render(f"{phrase.entry.one('adj')} {noun}{where}")
        relative = phrase.words(self.rng, self.language, "rel")
        order = [noun, " " + relative, where] if self.rng.random() < 0.4 else [noun, where, " " + relative]
        return self.render("".join(order))


def draw_arguments(rng, pairs, forbidden):
    """Distinct argument names: [(slot, kind, name)]."""
    drawn = []
    for slot, kind in pairs:
        name = argument_name(rng, kind)
        while name in forbidden or name in [other for *_, other in drawn]:
            name = argument_name(rng, kind)
        drawn.append((slot, kind, name))
    return drawn


def draw_from_template(rng, name, entry, language):
    """Draws one task of a template."""
    body = "\n".join(entry.all("body"))
    local_names = dict(entry.pairs("locals", "="))
    forbidden = set(re.findall(r"[A-Za-z_]+", SLOT.sub(lambda m: m.group(3) or "", body))) | set(local_names.values())
    slots = {slot for slot, _ in entry.pairs("args", ":")}
    drawn = draw_arguments(rng, entry.pairs("args", ":"), forbidden - slots)
    taken, phrases = [], {}
    for slot, kind in entry.pairs("use", "="):
        phrases[slot] = draw_phrase(rng, kind, language, taken, [p.entry.name for p in phrases.values()])
    values = draw_constants(rng, entry.pairs("const", "="), language, taken)
    values.update(local_names)
    values.update({slot: argument for slot, _, argument in drawn})
    filler = Filler(rng, language, [(slot, kind) for slot, kind, _ in drawn], values, phrases)
    doc = filler.render(rng.choice(entry.all(language)))
    arguments = [(argument, kind) for _, kind, argument in drawn]
    function = function_name(rng, entry.one("names").split(), [argument for argument, _ in arguments])
    return Task(name, language, function, arguments, doc, fill(body, filler.body), taken)


def finish_doc(rng, task):
    """Capital first letter, mostly a full stop, and now and then words around the task that change nothing."""
    doc, language = task.doc, task.language
    slots = lambda text: expand(rng, text, language).replace("{X}", task.arguments[0][0])
    if rng.random() < 0.09:
        doc = slots(PREFIX[language]) + doc[0].lower() + doc[1:]
    doc = doc[0].upper() + doc[1:]
    if doc[-1] not in ".؟" and rng.random() > 0.12:
        doc += "."
    if doc[-1] in ".؟" and rng.random() < 0.09:
        doc += " " + slots(rng.choice(NOTES[language][POOL_OF_KIND[task.arguments[0][1]]]))
    return doc


def write_prompt(rng, task):
    """Signature and docstring, now and then with type hints or the docstring on its own line."""
    hinted = rng.random() < 0.12
    shown = [f"{name}: {rng.choice(HINTS[POOL_OF_KIND[kind]])}" if hinted else name for name, kind in task.arguments]
    doc = finish_doc(rng, task)
    quoted = f'"""\n    {doc}\n    """' if rng.random() < 0.06 else f'"""{doc}"""'
    return f"def {task.function}({', '.join(shown)}):\n    {quoted}"


def draw(rng, language=None, template=None, weights=None):
    """Draws one task, reserved or not; `template` is a (name, entry) pair or a pipeline's name."""
    language = language or rng.choice(["en", "en", "en", "ar", "ar"])
    if template is None:
        template = rng.choice(list(PIPELINES)) if rng.random() < PIPELINE_SHARE else rng.choices(
            TEMPLATES, weights or template_weights())[0]
    if isinstance(template, str):
        task = draw_pipeline(rng, template, language)
    else:
        task = draw_from_template(rng, *template, language)
    task.prompt = write_prompt(rng, task)
    return task


def draw_pipeline(rng, name, language):
    """Draws a step-by-step task."""
    taken = []
    (_, kind, argument), = draw_arguments(rng, [("a", PIPELINES[name].kind)], {"result", "x", "w"})
    doc, body = PIPELINES[name].build(rng, language, argument, lambda group: draw_phrase(rng, group, language, taken))
    function = function_name(rng, ["steps", "pipeline"], [argument])
    return Task(name, language, function, [(argument, kind)], doc, body, taken)


def template_weights(plain=1.0):
    """Weights of TEMPLATES; `plain` multiplies those of templates without predicates and maps."""
    return [entry.weight * (1.0 if entry.all("use") else plain) for _, entry in TEMPLATES]


def training_stream(seed, plain=1.0):
    """Endless stream of training tasks; reserved combinations are skipped."""
    rng, weights = random.Random(seed), template_weights(plain)
    while True:
        task = draw(rng, weights=weights)
        if not task.reserved:
            yield task
