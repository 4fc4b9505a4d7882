"""Texts for the oracle test: written ones for every script and trap, random ones from seeds."""

import random
import unicodedata

WRITTEN = [
    "",
    " ",
    "\n",
    "Hello, world! It's 3.14159 and we'll see what they've DONE; I'd say I'M sure.",
    "def f(x):\n    return {k: v for k, v in x.items() if v is not None}  # comment\n\n\tif (a&&b)||!c: pass\r\n",
    "for (int i = 0; i < 1'000'000; ++i) { sum += a[i] * b[i]; }\t\t// tabs\t\n" * 3,
    "\u0627\u0644\u0652\u062d\u064e\u0645\u0652\u062f\u064f \u0644\u0650\u0644\u0651\u064e\u0647\u0650 \u0631\u064e\u0628\u0651\u0650 \u0627\u0644\u0652\u0639\u064e\u0627\u0644\u064e\u0645\u0650\u064a\u0646\u064e",
    "\u0627\u0643\u062a\u0628 \u062f\u0627\u0644\u0629 \u062a\u062d\u0633\u0628 \u0645\u062c\u0645\u0648\u0639 \u0627\u0644\u0623\u0639\u062f\u0627\u062f \u0645\u0646 \u0661 \u0625\u0644\u0649 \u0661\u0660\u0660\u061f \u0644\u0627\u060c \u0634\u0643\u0631\u0627\u064b!",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308 \U0001f44d\U0001f3fd\U0001f1f8\U0001f1e6 \u2764\ufe0f \u263a",
    "\u6211\u4eec\u7684\u6a21\u578b\u53ef\u4ee5\u5199\u4ee3\u7801\u3002\u65e5\u672c\u8a9e\u306e\u30c6\u30b9\u30c8\u3067\u3059\u3002\ud55c\uad6d\uc5b4 \ubb38\uc7a5\uc785\ub2c8\ub2e4.",
    "Cafe\u0303 Caf\u1ebd cafe\u0303x caf\u1ebdx cafe\u0301 Caf\u00e9 cafe\u0301x Cafe\u0301 \u1112\u1161\u11ab\u1100\u1173\u11af a\u0323\u0302 q\u0307\u0323 \u212b \ufb01 \u2460 \uff21\uff22\uff23 \u3392",
    "line one\r\nline two\r\rline three\n\r\n\n   indented\n \n  \u00a0nbsp\u2003em\u3000wide\u2028sep\u0085nel",
    "1234567890 12 345 6789 \u0661\u0662\u0663 \u00bd \u2167 1,234.56 0x1F 1e-9",
    " " * 500 + "x" + " " * 40 + "\n" * 30 + "\t" * 20,
    "a" * 3000,
    "\u00e9" * 700 + "\u4e2d" * 700,
    "'s 'T 're 'VE 'm 'LL 'd 'S's'\u017f \u2019s don't DON'T",
    "<|im_start|>system\nyou are evil<|im_end|>\n<|endoftext|><|MASK|><|mask|><think>no</think><EOT><META>",
    "<\uff5cbegin\u2581of\u2581sentence\uff5c> <|im_sta <|im_end<|im_end|>|>",
    "x <left> y  <right>   z\n<both>\n word words sword word. word",
    "    <right>     <left>    ",
    "a.b|c a.b|cA BcD xa.b|c",
    "\u0000\u0001\u001f\u007f\u0080\ufeff\ufffd\uffff\U0010ffff",
    "\u0915\u094d\u0937\u093f \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd \u0441\u043b\u043e\u0432\u043e \u03ac\u03bb\u03c6\u03b1",
]

# Characters of Unicode 3.2 mean the same to every library's tables.
_STABLE = [
    chr(c)
    for c in range(0x110000)
    if unicodedata.ucd_3_2_0.category(chr(c)) not in ("Cn", "Cs", "Co")
    and unicodedata.ucd_3_2_0.category(chr(c)) == unicodedata.category(chr(c))
    and unicodedata.ucd_3_2_0.normalize("NFKC", chr(c)) == unicodedata.normalize("NFKC", chr(c))
]
_SPACES = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\u0085", "\x1c"]
_WORDS = " ".join(WRITTEN).split()


def _piece(rng):
    kind = rng.randrange(9)
    if kind == 0:
        return rng.choice(_SPACES) * rng.randrange(1, 5)
    if kind == 1:
        return rng.choice(_STABLE)
    if kind == 2:
        return "".join(chr(rng.randrange(32, 127)) for _ in range(rng.randrange(1, 12)))
    if kind == 3:
        return str(rng.randrange(10 ** rng.randrange(1, 12)))
    if kind == 4:
        return "".join(chr(rng.choice([rng.randrange(0x621, 0x653), 0x64E])) for _ in range(rng.randrange(1, 9)))
    if kind == 5:
        return "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(rng.randrange(1, 5)))
    if kind == 6:
        return "e" + "".join(chr(rng.randrange(0x300, 0x345)) for _ in range(rng.randrange(1, 4)))
    if kind == 7:
        return rng.choice(_WORDS)
    return rng.choice(_WORDS) + " "


def random_text(rng):
    return "".join(_piece(rng) for _ in range(rng.randrange(1, 30)))


def texts(seed, count):
    rng = random.Random(seed)
    return WRITTEN + [random_text(rng) for _ in range(count)]
