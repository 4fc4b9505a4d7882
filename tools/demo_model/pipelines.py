"""Tasks of several steps with a helper variable: the longer answers of the training data."""
from collections.abc import Callable
from dataclasses import dataclass

from grammar import expand

IT = {"en": "<it|it|the result|the value>", "ar": "<الناتج|النتيجة|القيمة>"}
EACH = {"en": "<each|each one|every $num|each $num>", "ar": "<كلا منها|كل <عدد|عنصر>|كل واحد منها>"}
EACH_WORD = {"en": "<each|each one|every $str|each $str>", "ar": "<كلا منها|كل <نص|عنصر>|كل واحد منها>"}
START = {"en": "<Start with|Begin with|Take> {}", "ar": "<ابدأ ب|خذ|انطلق من> {}"}
END = {"en": "<return|finally return|give back|in the end return> {}", "ar": "<أرجع|أخيرا أرجع|أعد> {}"}
RESULT = {"en": "<the result|it|what you get>", "ar": "<الناتج|النتيجة|ما تحصل عليه>"}
IF = {"en": "if it {condition}, {action}", "ar": "<إذا|إن> كان {condition} ف{action}"}
JOINS = {"en": [". ", ", then ", "; then ", "; ", ". Then "], "ar": [". ", " ثم ", "، ثم ", "؛ "]}
FILTER = {"en": "<keep|keep only|take> the {noun} {rel}", "ar": "<خذ|أبق|اختر> {noun} {rel}"}
LIST_STEPS = {  # code on `result`, English, Arabic
    "sort": ("sorted(result)", "sort <them|it|the list>", "رتبها تصاعديا"),
    "sort_desc": ("sorted(result, reverse=True)", "sort <them|it|the list> in descending order", "رتبها تنازليا"),
    "reverse": ("result[::-1]", "reverse <the list|the order|it>", "اعكس ترتيبها"),
}
LIST_ENDS = [("result", "<the list|the result|it>", "<القائمة|الناتج>"),
             ("sum(result)", "<the sum|their sum|the total>", "<المجموع|مجموعها>"),
             ("len(result)", "<the count|how many are left|the length>", "<عددها|الطول>"),
             ("max(result, default=0)", "the largest, or 0 if there is none", "أكبرها أو 0 إذا لم يوجد")]
WORD_ENDS = [("result", "<the list|the result|it>", "<القائمة|الناتج>"),
             ("' '.join(result)", "<the result|them> joined by spaces", "الناتج مفصولا بفراغات"),
             ("len(result)", "<the count|how many are left|the length>", "<عددها|الطول>")]


@dataclass
class Pipeline:
    """A kind of step-by-step task: its argument's kind and build(rng, language, argument, draw_phrase)."""
    kind: str
    build: Callable


def join(rng, language, sentences):
    """Joins steps with one kind of joint."""
    joint = rng.choice(JOINS[language])
    if language == "en" and joint in (". ", ". Then "):
        middle = [s[0].upper() + s[1:] for s in sentences] if joint == ". " else sentences
        return joint.join(middle)
    return joint.join(sentences)


def scalar_pipeline(maps, predicates):
    """Two to five in-place steps on one value, some of them conditional."""
    def build(rng, language, argument, phrase):
        say = lambda text: expand(rng, text, language)
        sentences, lines = [say(START[language]).format(argument)], [f"result = {argument}"]
        for _ in range(rng.choice([2, 2, 3, 3, 4, 5])):
            step = phrase(maps)
            action = step.words(rng, language, "do", say(IT[language]))
            if rng.random() < 0.3:
                condition = phrase(predicates)
                text = say(IF[language]).format(condition=condition.words(rng, language, "is"), action=action)
                lines += [f"if {condition.code('result')}:", "    " + step.code("result", "op")]
            else:
                text = action
                lines.append(step.code("result", "op"))
            sentences.append(text)
        sentences.append(say(END[language]).format(say(RESULT[language])))
        return join(rng, language, sentences), "\n".join(lines + ["return result"])
    return build


def list_pipeline(maps, predicates, noun, each, variable, ends):
    """Two to four steps on a list, then a result."""
    def step(rng, language, phrase, say):
        draw = rng.random()
        if draw < 0.4:
            condition = phrase(predicates)
            text = say(FILTER[language].replace("{noun}", noun)).format(rel=condition.words(rng, language, "rel"))
            return text, f"[{variable} for {variable} in result if {condition.code(variable)}]"
        if draw < 0.75:
            change = phrase(maps)
            text = change.words(rng, language, "do", say(each[language]))
            return text, f"[{change.code(variable)} for {variable} in result]"
        code, english, arabic = LIST_STEPS[rng.choice(list(LIST_STEPS))]
        return say(english if language == "en" else arabic), code

    def build(rng, language, argument, phrase):
        say = lambda text: expand(rng, text, language)
        sentences, lines = [say(START[language]).format(argument)], [f"result = {argument}"]
        for _ in range(rng.choice([2, 2, 3, 3, 4])):
            text, code = step(rng, language, phrase, say)
            sentences.append(text)
            lines.append(f"result = {code}")
        code, english, arabic = rng.choice(ends)
        sentences.append(say(END[language]).format(say(english if language == "en" else arabic)))
        return join(rng, language, sentences), "\n".join(lines + [f"return {code}"])
    return build


PIPELINES = {
    "steps.number": Pipeline("int", scalar_pipeline("maps", "predicates")),
    "steps.text": Pipeline("str", scalar_pipeline("string_maps", "string_predicates")),
    "steps.list": Pipeline("list", list_pipeline("maps", "predicates", "$nums", EACH, "x", LIST_ENDS)),
    "steps.words": Pipeline(
        "words", list_pipeline("string_maps", "string_predicates", "$strs", EACH_WORD, "w", WORD_ENDS)),
}
