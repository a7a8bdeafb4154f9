"""The strings on which a vocabulary is proven: the same ones at every export.

Written out are texts in many scripts, code, numbers, white space and emoji; drawn from a fixed seed are mixtures
of them, random bytes and random characters; made for the tokenizer at hand are its special tokens in every
surrounding and sequences of its own pieces.
"""

import random
import unicodedata
from collections.abc import Iterator, Sequence

SEED = 20240229
N_MIXED, N_BYTES, N_CHARACTERS, N_PIECES = 1000, 300, 300, 200
"""How many strings of each drawn kind: mixtures, random bytes, random characters, pieces of the vocabulary."""

MAX_SPECIAL = 48
"""Of a tokenizer with more added tokens, as many are tried, evenly spread."""

LANGUAGES = (
    "The quick brown fox jumps over the lazy dog, doesn't it? I'm sure they'll say we've SEEN HE'S THERE'RE 'D.",
    "Voix ambiguë d'un cœur qui, au zéphyr, préfère les jattes de kiwis — « déjà vu » ?",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich; STRASSE, ẞ, ß.",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia y frío, ¡añoraba a su querido cachorro!",
    "À noite, vovô Kowalsky vê o ímã cair no pé do pinguim queixoso. Ção, ÇÃO.",
    "Pchnąć w tę łódź jeża lub ośm skrzyń fig; ŁÓDŹ, żółć.",
    "Příliš žluťoučký kůň úpěl ďábelské ódy. Árvíztűrő tükörfúrógép.",
    "Pijamalı hasta yağız şoföre çabucak güvendi. İstanbul'da ıslak, IĞDIR.",
    "Flygande bäckasiner söka hwila på mjuka tuvor; Ærø, Ålesund, Þór, Ðjúpivogur.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю! КамелКейс, ПРИВЕТ мир.",
    "Чуєш їх, доцю, га? Кумедна ж ти, прощайся без ґольфів!",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. ΚΑΛΗΜΕΡΑ ΚΟΣΜΕ, σς.",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה. שָׁלוֹם עוֹלָם",
    "صِف خَلقَ خَودِ كَمِثلِ الشَمسِ إِذ بَزَغَت — مرحبا بالعالم، ١٢٣ ۴۵۶",
    "یک زبان خوب، ٹھیک ہے؟ می‌خواهم",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश। नमस्ते दुनिया १२३",
    "আমার সোনার বাংলা, আমি তোমায় ভালোবাসি। ১২৩",
    "தமிழ் மொழி அழகானது. ౦౧౨ తెలుగు ಕನ್ನಡ മലയാളം ਪੰਜਾਬੀ ગુજરાતી සිංහල",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า ๑๒๓ ພາສາລາວ ភាសាខ្មែរ កាន់តែពិសេសអាច မြန်မာဘာသာ",
    "我想在apple工作1314151天～，中文文本。「引号」、……！？《書名》 １２３",
    "いろはにほへと ちりぬるを、日本語のテキスト。カタカナ、ｶﾀｶﾅ、漢字かな交じり文！",
    "다람쥐 헌 쳇바퀴에 타고파. 한국어 텍스트! 안녕하세요 세계",
    "Do bạch kim rất quý, sẽ dùng để lắp vô xương. Tiếng Việt ĐƯỢC",
    "ጤና ይስጥልኝ ለዓለም። ქართული ენა ᲥᲐᲠᲗᲣᲚᲘ Հայերեն լեզու Монгол ᠮᠣᠩᠭᠣᠯ བོད་སྐད།",
    "Ünïcödé naïve café ĳ ﬁ ﬀ ǅ ª º µ Ω K Å ſ 's 'ſ 'K",
)
CODE = (
    "def f(x: int) -> list[str]:\n\treturn [a[i] for i in range(10)]  # comment\n\n\nclass A(B):\n    pass\n",
    "if (x != y && !(a <= b)) { return *p++ ^ ~mask; } // TODO\r\n\r\n/* block\r\n */",
    '{"tool": "lights", "arguments": {"room": "kitchen", "level": 50, "on": null}, "ids": [1,22,333,4444]}\n',
    '<div class="a-b">Hello &amp; <b>you</b><br/></div>\n<!-- x -->\n',
    "SELECT count(*) FROM `t` WHERE a_b LIKE '%x%' AND c >= 1e-5;\n",
    'fn main() -> Result<(), Box<dyn Error>> {\n    println!("{:?}", x.iter().map(|v| v * 2));\n}\n',
    "#!/bin/bash\nset -euo pipefail; for f in *.txt; do echo \"$f\" | sed 's/a/b/g' >> out; done\n",
    "$$\\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}$$ \\begin{align} x &= y \\\\ \\end{align}",
    "# Title\n\n- item *one*\n- item **two**\n  1. [link](https://example.org/a?b=c&d=e#f)\n\n",
    "```py\nx = 1\n```\n| a | b |\n|---|---|\n",
    "snake_case camelCase PascalCase kebab-case SCREAMING_SNAKE XMLHttpRequest getHTTPResponse iPhone McDonald's",
    "/usr/local/bin C:\\Windows\\System32 user@example.org 192.168.0.1 fe80::1 v1.2.3-rc.4+build.5",
    "import os,sys\nprint(f'{x!r:>{10}}')\n\t\t\tif True:\n        \tpass\n",
)
NUMBERS = (
    "0 1 12 123 1234 12345 123456 1234567 12345678 1234567890 00000000000000000000",
    "3.14159 -1,000,000.00 +1.5e-10 1/2 50% $99.99 €5 £3 ¥100 #42 1st 2nd 3rd 0x1F 0b101 1_000",
    "2024-02-29T12:34:56.789Z 12:30pm 29/02/2024 (555) 123-4567 1990s '90s",
    "½ ² ³ Ⅳ ⅷ ٣ ४ ౭ ９ 九 ① ⑳ ㊿ x1y2z3 a1b22c333d4444",
)
SPACES = (
    " ", "  ", "   ", "    ", "        ", "\n", "\n\n", "\n\n\n", "\r\n", "\r\n\r\n", "\t", "\t\t", " \n", "\n ",
    " \n ", "   \n  \t \r\n", "\n\t\n", "\u00a0", "\u2003", "\u3000", "\u2028", "\u0085", "\u200b",
    "\ufeff", "\x0b", "\x0c",
)  # fmt: skip
EMOJI = (
    "😀", "👍🏽", "👩‍👩‍👧‍👦", "🇩🇪", "✈️", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "❤️‍🔥", "1️⃣", "🦙🦙", "☺", "→", "✓", "█▓░", "♫", "∑∞≠≤", "™©®", "°C",
    "e\u0301", "o\u0308\u0304", "\u0915\u094d\u0937", "𝒜𝓑", "𐍈", "𠮷", "�",
)  # fmt: skip
MARKS = (
    "!!!", "???", "...", "---", "***", "((", "))", "{}", "[]", "<>", "''", '"', "``", "~", "|", "\\", "/", "&&", "::",
    "->", "=>", "!=", "==", ",", ".", ";", "_", "__", "▁", "▁▁", "Ġ", "##", "@", "#", "$", "%", "^", "+", "=", "«", "»",
    "“", "”", "…", "—", "、",
)  # fmt: skip
SPECIAL_LOOKING = (
    "<s>", "</s>", "<unk>", "<pad>", "<mask>", "<bos>", "<eos>", "[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]", "[INST]",
    "[/INST]", "<<SYS>>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<|user|>", "<EOT>",
    "<PRE>", "<SUF>", "<MID>", "<|fim_prefix|>", "<fim_middle>", "<|tool_call|>", "<tool_call>", "<think>", "</think>",
    "<start_of_turn>", "<end_of_turn>", "<0x0A>", "<|reserved_special_token_0|>", "[PAD7]", "<|message|>",
)  # fmt: skip


def fixed_strings() -> Iterator[str]:
    """The strings that depend on nothing: written out, mixed, random."""
    written = (*LANGUAGES, *CODE, *NUMBERS)
    yield from written
    for text in (*SPACES, *EMOJI, *MARKS, *SPECIAL_LOOKING):
        yield from (text, f"a{text}b", f" {text} a", f"1{text}2")
    source = random.Random(SEED)
    words = [word for text in written for word in text.split(" ")]
    pools = (words, words, words, SPACES, EMOJI, MARKS)
    for _ in range(N_MIXED):
        pieces = source.choices(pools, k=source.randint(2, 7))
        yield source.choice(("", " ")).join(source.choice(pool) for pool in pieces)
    for length in range(N_BYTES):
        content = source.randbytes(1 + length % 48)
        yield content.decode("latin-1") if length % 2 else content.decode(errors="replace")
    characters = _characters()
    for length in range(N_CHARACTERS):
        yield "".join(source.choices(characters, k=1 + length % 24))


def special_strings(added: Sequence[str]) -> Iterator[str]:
    """Each added token glued to letters, spaced out, doubled, at both ends of a line, and all of them in a row."""
    step = max(1, len(added) // MAX_SPECIAL)
    chosen = [*added[::step], *added[-1:]]
    for token in chosen:
        yield from (token, f" {token} ", f"a{token}b", f"Hello {token}  world", f"{token}{token} {token}\n\n{token}")
        yield from (f"{token}user\nHello{token}\n", f"x\n{token}\t{token[:-1]}", f"{token.upper()}{token.lower()}")
    yield "".join(chosen)
    yield " ".join(chosen)


def piece_strings(pieces: Sequence[str]) -> Iterator[str]:
    """Random sequences of the vocabulary's own `pieces`, which come upon merges no natural text has."""
    source = random.Random(SEED)
    for length in range(N_PIECES):
        yield "".join(source.choices(pieces, k=1 + length % 12))


def _characters() -> list[str]:
    """One in 31 of the assigned characters, from every script."""
    every = map(chr, range(0x21, 0x20000, 31))
    return [character for character in every if unicodedata.category(character) not in ("Cn", "Cs", "Co")]
