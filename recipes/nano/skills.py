"""Synthetic documents that teach a tiny model the skills on-device tasks need.

Copying spans it has never seen, filling JSON from a request, numbers said in words, durations. A model of
a few million parameters meets too little text to learn to copy from prose alone; copying is what tool calls
are made of. The requests here are about errands, mail, travel, notes and tables on purpose: none of
edgeft's example tasks (home assistant, intents) is among them.
"""

import json
import random
from collections.abc import Callable, Iterator

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
SYLLABLES = (
    "ka lo mi ren tor sha bel vi dun gra pol es ter an mo ri ne lu ja wen cor ist ber ham ton ley ford wick os "
    "ina elle ard by do fa go hu kin lar ma no pe qua ro si ta un ve wy xa yo zu"
).split()
FRAMES = {
    "send_mail": (("to", "text"), (
        "send a mail to {to} saying {text}", "mail {to} that {text}", "write to {to}: {text}",
        "tell {to} by mail {text}", "can you send {to} a message that says {text}", "email {to} {text}",
    )),
    "book_trip": (("from", "to", "when"), (
        "book a trip from {from} to {to} {when}", "i need to go to {to} from {from} {when}",
        "get me a ticket from {from} to {to} for {when}", "travel {when} from {from} to {to}",
        "{when} i want to leave {from} and get to {to}",
    )),
    "save_note": (("title", "text"), (
        "save a note called {title}: {text}", "note {text} under {title}", "make a note {title} with {text}",
        "write down {text} and name it {title}", "new note named {title} that says {text}",
    )),
    "find_file": (("name", "folder"), (
        "find the file {name} in {folder}", "where is {name} in {folder}", "open {name} from {folder}",
        "look for {name} inside {folder}", "search {folder} for {name}",
    )),
    "translate": (("text", "language"), (
        "translate {text} to {language}", "how do you say {text} in {language}", "what is {text} in {language}",
        "put {text} into {language}",
    )),
    "call": (("name",), (
        "call {name}", "ring {name}", "phone {name} please", "get {name} on the phone", "dial {name} now",
        "could you call {name} for me",
    )),
    "order": (("count", "thing", "shop"), (
        "order {count} {thing} from {shop}", "buy {count} {thing} at {shop}", "i want {count} {thing} from {shop}",
        "from {shop} get me {count} {thing}", "please order {count} of the {thing} at {shop}",
    )),
    "pay": (("amount", "name"), (
        "pay {amount} to {name}", "send {name} {amount}", "transfer {amount} to {name}", "give {amount} to {name}",
        "i owe {name} {amount} pay it",
    )),
    "navigate": (("place",), (
        "take me to {place}", "how do i get to {place}", "drive to {place}", "navigate to {place}",
        "show me the way to {place}", "directions to {place} please",
    )),
    "meeting": (("with", "day", "time"), (
        "meet {with} on {day} at {time}", "plan a meeting with {with} at {time} on {day}",
        "on {day} at {time} i see {with}", "put a meeting with {with} in my calendar {day} {time}",
    )),
    "define": (("word",), (
        "what does {word} mean", "define {word}", "meaning of {word}", "look up the word {word}",
    )),
    "rename": (("old", "new"), (
        "rename {old} to {new}", "change the name of {old} to {new}", "call {old} {new} from now on",
    )),
    "assign": (("task", "name"), (
        "give {task} to {name}", "assign {task} to {name}", "{name} should do {task}", "let {name} handle {task}",
    )),
}  # fmt: skip
DAYS = "monday tuesday wednesday thursday friday saturday sunday today tomorrow tonight".split()
LANGUAGES = "french german spanish italian dutch polish greek turkish hindi swahili finnish welsh".split()
OPENERS = ("", "", "", "", "please ", "hey ", "ok ", "can you ", "could you ", "i want you to ", "um ", "now ")
CLOSERS = ("", "", "", "", "", " please", " thanks", " now", " ok", " for me", ".", "!")


def skill_documents(rng: random.Random, words: list[str], count: int) -> Iterator[dict]:
    """`count` chat documents, kinds mixed by weight."""
    makers: list[tuple[int, Callable[[random.Random, list[str]], tuple[str, str]]]] = [
        (40, _tool_call), (12, _record), (10, _after_word), (8, _repeat), (6, _said_number), (6, _duration),
        (5, _field), (4, _choose), (3, _reverse), (3, _count), (3, _sum),
    ]  # fmt: skip
    weights = [weight for weight, _ in makers]
    for _ in range(count):
        maker = rng.choices(makers, weights)[0][1]
        question, answer = maker(rng, words)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        yield {"messages": messages}


def said(number: int) -> str:
    """A number below 1,000 in words."""
    if number < 20:
        return ONES[number]
    if number < 100:
        ten, one = divmod(number, 10)
        return TENS[ten - 2] + (" " + ONES[one] if one else "")
    hundred, rest = divmod(number, 100)
    return ONES[hundred] + " hundred" + (" and " + said(rest) if rest else "")


def made_up_name(rng: random.Random) -> str:
    """A made-up word: a name no text has, so that it can only be copied."""
    return "".join(rng.choices(SYLLABLES, k=rng.choice((2, 2, 3, 3, 4))))


def phrase(rng: random.Random, words: list[str], longest: int = 4) -> str:
    size = rng.randint(1, longest)
    return " ".join(made_up_name(rng) if rng.random() < 0.25 else rng.choice(words) for _ in range(size))


def _value(rng: random.Random, words: list[str], key: str) -> str:
    if key == "day" or key == "when":
        return rng.choice(DAYS)
    if key == "language":
        return rng.choice(LANGUAGES)
    if key == "count":
        return str(rng.randint(2, 60))
    if key == "amount":
        return f"{rng.randint(1, 900)} {rng.choice(('dollars', 'euros', 'pounds'))}"
    if key == "time":
        return str(rng.randint(1, 12)) + rng.choice((" am", " pm", ":15", ":30", ":45", " o'clock"))
    if key == "text":
        return phrase(rng, words, 7)
    return phrase(rng, words)


def typo(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text) - 1)
    kind = rng.randrange(3)
    if kind == 0:
        return text[:at] + text[at + 1 :]
    if kind == 1:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + text[at] + text[at:]


def _tool_call(rng: random.Random, words: list[str]) -> tuple[str, str]:
    """A request to a JSON call; the names of tool and keys vary, so that shape is learned, not a list."""
    tool = rng.choice(sorted(FRAMES))
    keys, templates = FRAMES[tool]
    values = {key: _value(rng, words, key) for key in keys}
    template = rng.choice(templates)
    opener, closer = rng.choice(OPENERS), rng.choice(CLOSERS)
    if rng.random() < 0.12:
        template = typo(rng, template) if "{" not in template[:3] else template
    try:
        text = template.format(**values)
    except (KeyError, ValueError, IndexError):  # the typo fell on a placeholder
        text = rng.choice(templates).format(**values)
    style = rng.randrange(3)
    if style == 0:
        call = {"tool": tool, **values}
    elif style == 1:
        call = {"name": tool, "arguments": values}
    else:
        call = {"action": tool.replace("_", " "), **values}
    separators = (",", ":") if rng.random() < 0.6 else (", ", ": ")
    return opener + text + closer, json.dumps(call, separators=separators, ensure_ascii=False)


def _record(rng: random.Random, words: list[str]) -> tuple[str, str]:
    keys = rng.sample(words, rng.randint(2, 4))
    pairs = {key: phrase(rng, words, 3) for key in keys}
    shuffled = list(pairs.items())
    rng.shuffle(shuffled)
    joint = rng.choice((" is ", ": ", " = ", " "))
    text = rng.choice((", ", "; ", " and ", "\n")).join(f"{key}{joint}{value}" for key, value in shuffled)
    return "json " + ",".join(keys) + "\n" + text, json.dumps(pairs, separators=(",", ":"))


def _after_word(rng: random.Random, words: list[str]) -> tuple[str, str]:
    line = [made_up_name(rng) if rng.random() < 0.3 else rng.choice(words) for _ in range(rng.randint(5, 14))]
    at = rng.randrange(len(line) - 1)
    if line.count(line[at]) > 1:
        return "say again: " + " ".join(line), " ".join(line)
    return " ".join(line) + f"\nwhat comes after {line[at]}?", " ".join(line[at + 1 : at + 3])


def _repeat(rng: random.Random, words: list[str]) -> tuple[str, str]:
    text = phrase(rng, words, 12)
    return rng.choice(("repeat: ", "say again: ", "copy ", "echo ")) + text, text


def _said_number(rng: random.Random, words: list[str]) -> tuple[str, str]:
    number = rng.choice((rng.randint(0, 99), rng.randint(0, 999)))
    if rng.random() < 0.5:
        return f"{said(number)} in digits", str(number)
    unit = rng.choice(words)
    return f"number in: {phrase(rng, words, 3)} {said(number)} {unit}", str(number)


def _duration(rng: random.Random, words: list[str]) -> tuple[str, str]:
    amount = rng.randint(1, 90)
    unit = rng.choice(("second", "minute", "hour", "day", "week")) + ("" if amount == 1 else "s")
    shown = said(amount) if rng.random() < 0.5 else str(amount)
    text = f"{phrase(rng, words, 3)} for {shown} {unit} {phrase(rng, words, 2)}"
    return f"how long: {text}", f"{amount} {unit}"


def _field(rng: random.Random, words: list[str]) -> tuple[str, str]:
    pairs = {key: phrase(rng, words, 3) for key in rng.sample(words, rng.randint(2, 5))}
    key = rng.choice(sorted(pairs))
    return json.dumps(pairs) + f"\n{key}?", pairs[key]


def _choose(rng: random.Random, words: list[str]) -> tuple[str, str]:
    options = rng.sample(words, rng.randint(2, 5))
    picked = rng.choice(options)
    text = f"{phrase(rng, words, 4)} {picked} {phrase(rng, words, 4)}"
    return f"which of {', '.join(options)} is in: {text}", picked


def _reverse(rng: random.Random, words: list[str]) -> tuple[str, str]:
    line = rng.sample(words, rng.randint(2, 5))
    return "backwards: " + " ".join(line), " ".join(reversed(line))


def _count(rng: random.Random, words: list[str]) -> tuple[str, str]:
    line = rng.sample(words, rng.randint(1, 9))
    return "how many words: " + " ".join(line), str(len(line))


def _sum(rng: random.Random, words: list[str]) -> tuple[str, str]:
    a, b = rng.randint(0, 50), rng.randint(0, 50)
    return (f"{a}+{b}", str(a + b)) if rng.random() < 0.5 else (f"{said(a)} plus {said(b)}", str(a + b))
