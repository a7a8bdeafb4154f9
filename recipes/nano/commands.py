"""Made-up requests to appliances and apps, with the call they ask for: the last part of nano's corpus.

`skills.py` teaches copying with arbitrary words; here the words mean something: up and down, on and off, next
and previous, too loud and too cold, an hour and a half, and what is no request at all. Tools, argument names and
formats vary from document to document, and differ from those of edgeft's example recipes.
"""

import json
import random
from collections.abc import Iterator

from skills import CLOSERS, DAYS, OPENERS, made_up_name, phrase, said, typo

DEVICES = (
    "fan heater radio pump printer screen kettle projector sprinkler camera alarm engine robot humidifier router "
    "oven washer dryer toaster mixer vacuum charger monitor speaker fountain grill freezer laptop"
).split()
UNITS = ("second", "minute", "hour", "day")
ON = ("turn on {d}", "turn {d} on", "switch on {d}", "switch {d} on", "power up {d}", "start {d}", "{d} on",
      "fire up {d}", "enable {d}", "get {d} going", "put {d} on", "flip {d} on", "i want {d} on", "{d} should be on",
      "make sure {d} is on")  # fmt: skip
OFF = ("turn off {d}", "turn {d} off", "switch off {d}", "switch {d} off", "shut off {d}", "shut {d} down", "{d} off",
       "kill {d}", "disable {d}", "stop {d}", "power down {d}", "flip {d} off", "i want {d} off",
       "{d} should be off", "no more {d}", "make sure {d} is off")  # fmt: skip
UP = ("turn up {q}", "turn {q} up", "raise {q}", "increase {q}", "bump up {q}", "crank up {q}", "more {q}",
      "bring {q} up", "put {q} up", "make {q} higher", "{q} up", "turn {q} up a bit", "a little more {q}")  # fmt: skip
DOWN = ("turn down {q}", "turn {q} down", "lower {q}", "reduce {q}", "decrease {q}", "bring {q} down", "less {q}",
        "put {q} down", "make {q} lower", "{q} down", "turn {q} down a bit", "a little less {q}",
        "drop {q}")  # fmt: skip
COMPLAINTS = (
    ("volume", "down", ("it's too loud", "that is way too loud", "so loud", "my ears hurt", "make it quieter",
                        "quieter", "softer", "keep it down", "not so loud")),
    ("volume", "up", ("it's too quiet", "i can't hear it", "i can hardly hear this", "make it louder", "louder",
                      "speak up", "not loud enough")),
    ("temperature", "up", ("it's too cold", "i'm cold", "i'm freezing", "it is chilly", "make it warmer", "warmer",
                           "it's cold in here", "we are freezing", "warm it up", "not warm enough")),
    ("temperature", "down", ("it's too hot", "i'm hot", "i'm sweating", "it is too warm", "make it cooler", "cooler",
                             "it's boiling in here", "cool it down", "it is so stuffy", "not cool enough")),
    ("brightness", "up", ("it's too dark", "i can't see a thing", "make it brighter", "brighter", "so dark here")),
    ("brightness", "down", ("it's too bright", "dim it", "make it darker", "darker", "so bright here")),
    ("speed", "up", ("too slow", "go faster", "faster", "speed up", "hurry up")),
    ("speed", "down", ("too fast", "go slower", "slower", "slow down")),
)  # fmt: skip
PLAYBACK = (
    ("pause", ("pause", "pause {m}", "hold {m}", "stop {m}", "stop {m} for now", "freeze {m}", "stop playing {m}")),
    ("resume", ("resume", "resume {m}", "continue {m}", "go on", "carry on with {m}", "keep going", "unpause {m}",
                "start {m} again", "keep playing {m}")),
    ("next", ("next", "next one", "skip", "skip {m}", "skip this", "go to the next {m}", "next {m}", "jump ahead")),
    ("previous", ("previous", "go back", "back to the last {m}", "previous {m}", "the one before", "play {m} again",
                  "go to the previous {m}", "last {m} again")),
)  # fmt: skip
MEDIA = "video slideshow podcast recording audiobook lesson film story episode".split()
LISTS = ("guest list", "to do list", "packing list", "reading list", "menu", "wish list")
ADD = ("add {x} to {l}", "put {x} on {l}", "{x} goes on {l}", "write {x} on {l}", "note {x} on {l}", "we need {x}",
       "i need more {x}", "we are out of {x}", "we ran out of {x}", "don't forget {x}", "include {x} in {l}",
       "remind me to get {x}", "throw {x} on {l}", "{l} {x}")  # fmt: skip
REMOVE = ("remove {x} from {l}", "take {x} off {l}", "delete {x} from {l}", "drop {x} from {l}", "cross {x} off {l}",
          "{x} can come off {l}", "we don't need {x}", "we have enough {x}", "scratch {x}", "get rid of {x} on {l}",
          "no more {x} on {l}", "i already have {x}")  # fmt: skip
REMIND = ("remind me in {t} about {x}", "remind me about {x} in {t}", "alarm for {x} in {t}",
          "in {t} tell me about {x}",
          "ring me in {t} for {x}", "wake me in {t}", "alarm in {t}", "set an alarm for {t}", "{t} alarm for {x}",
          "{x} needs an alarm in {t}", "give me {t} for {x}", "ping me after {t}")  # fmt: skip
FORGET = ("cancel the {x} alarm", "forget the {x} reminder", "stop the {x} alarm", "delete the alarm for {x}",
          "i don't need the {x} alarm", "no more alarm for {x}", "end the {x} reminder", "cancel the alarm",
          "forget the reminder", "drop the {x} alarm", "kill the alarm")  # fmt: skip
TOPICS = "traffic news pollen tide moon football bus train".split()
LOOKUP = ("what's the {o} in {p} {day}", "{o} in {p} {day}", "{o} {p}", "how is the {o} in {p}", "{o} for {p} {day}",
          "tell me the {o} for {p}", "any {o} in {p} {day}", "check the {o} {day}", "{day} {o}",
          "show me the {o} {day}",
          "what will the {o} be like in {p} {day}", "is there {o} {day}")  # fmt: skip
OPEN = ("open {x}", "show me {x}", "let me see {x}", "i want to see {x}", "watch {x}", "put on {x}", "find {x}",
        "find {x} and open it", "start {x}", "i feel like {x}", "let's watch {x}", "how about {x}", "read me {x}",
        "i'd like to see {x}", "something by {x}", "bring up {x}", "time for {x}", "we want {x}")  # fmt: skip
IDLE = ("who invented the {d}", "why is the {d} so loud", "how does a {d} work", "where can i buy a {d}",
        "i like the {d}", "my brother broke the {d}", "what does a {d} cost", "is the {d} expensive",
        "when was the first {d} made", "who left the {d} in {x}", "tell me about {x}", "what is {x}", "who is {x}",
        "my sister loves {x}", "do you like {x}", "i saw {x} {day}", "are you a robot", "good morning", "thank you",
        "how old is {x}", "how far is {x}", "book a table for two", "call {x}", "translate {x} into french",
        "is {x} good for you", "who wrote {x}", "how many people live in {x}", "what's two plus three",
        "tell me a joke", "how do i get to {x}", "is the shop open {day}", "where is my {d}")  # fmt: skip


def command_documents(rng: random.Random, words: list[str], count: int) -> Iterator[dict]:
    """`count` chat documents: a request and its call."""
    makers = (_switch, _adjust, _level, _playback, _list, _remind, _lookup, _open, _idle)
    weights = (14, 16, 8, 9, 13, 14, 9, 9, 14)
    for _ in range(count):
        text, call = rng.choices(makers, weights)[0](rng, words)
        text = " ".join(text.split())
        if rng.random() < 0.12:
            text = _mistype_outside(rng, text, call)
        text = rng.choice(OPENERS) + text + rng.choice(CLOSERS)
        yield {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": _answer(rng, call)}]}


def _answer(rng: random.Random, call: dict[str, str | None]) -> str:
    arguments = dict(call)
    tool = arguments.pop("tool")
    style = rng.randrange(4)
    shaped: dict[str, object] = {"tool": tool, **arguments}
    if style == 1:
        shaped = {"name": tool, "arguments": arguments}
    elif style == 2:
        shaped = {"action": tool, **arguments}
    separators = (",", ":") if rng.random() < 0.7 else (", ", ": ")
    return json.dumps(shaped, separators=separators, ensure_ascii=False)


def _mistype_outside(rng: random.Random, text: str, call: dict[str, str | None]) -> str:
    """A typo in a word that is not part of a value."""
    taken = {word for value in call.values() if value for word in value.split()}
    tokens = text.split(" ")
    free = [i for i, word in enumerate(tokens) if len(word) >= 4 and word not in taken]
    if free:
        at = rng.choice(free)
        tokens[at] = typo(rng, tokens[at])
    return " ".join(tokens)


def _the(rng: random.Random, name: str) -> str:
    return rng.choice(("the ", "the ", "the ", "my ", "")) + name


def _device(rng: random.Random, words: list[str]) -> str:
    if rng.random() < 0.5:
        return rng.choice(DEVICES)
    return rng.choice((rng.choice(words), made_up_name(rng))) + " " + rng.choice(DEVICES)


def _switch(rng: random.Random, words: list[str]) -> tuple[str, dict]:
    device, state = _device(rng, words), rng.choice(("on", "off"))
    text = rng.choice(ON if state == "on" else OFF).format(d=_the(rng, device))
    if rng.random() < 0.4:
        place = phrase(rng, words, 2)
        return f"{text} in the {place}", {"tool": "switch", "device": device, "place": place, "state": state}
    return text, {"tool": "switch", "device": device, "state": state}


def _adjust(rng: random.Random, words: list[str]) -> tuple[str, dict]:
    if rng.random() < 0.5:
        what, direction, lines = rng.choice(COMPLAINTS)
        return rng.choice(lines), {"tool": "adjust", "what": what, "direction": direction}
    what = rng.choice(("volume", "sound", "heat", "speed", "pressure", "zoom", "temperature", "bass", "brightness"))
    direction = rng.choice(("up", "down"))
    text = rng.choice(UP if direction == "up" else DOWN).format(q=_the(rng, what))
    return text, {"tool": "adjust", "what": what, "direction": direction}


def _number(rng: random.Random, most: int) -> tuple[str, str]:
    number = rng.randint(1, most)
    return (said(number) if rng.random() < 0.5 else str(number)), str(number)


def _level(rng: random.Random, words: list[str]) -> tuple[str, dict]:
    device, (shown, value) = _device(rng, words), _number(rng, 100)
    unit = rng.choice(("", " percent", "%" if shown.isdigit() else " percent", " degrees"))
    text = rng.choice(
        ("set {d} to {n}", "put {d} at {n}", "{d} to {n}", "bring {d} to {n}", "make {d} {n}", "turn {d} to {n}",
         "i want {d} at {n}", "{d} at {n}")
    )  # fmt: skip
    return text.format(d=_the(rng, device), n=shown + unit), {"tool": "set_level", "device": device, "level": value}


def _playback(rng: random.Random, words: list[str]) -> tuple[str, dict]:
    action, lines = rng.choice(PLAYBACK)
    medium = rng.choice(("the ", "this ", "")) + rng.choice(MEDIA)
    return rng.choice(lines).format(m=medium), {"tool": "playback", "action": action}


def _list(rng: random.Random, words: list[str]) -> tuple[str, dict]:
    thing, kind, adding = phrase(rng, words, 3), rng.choice(LISTS), rng.random() < 0.55
    text = rng.choice(ADD if adding else REMOVE).format(x=rng.choice(("", "", "some ")) + thing, l=_the(rng, kind))
    call = {"tool": "add" if adding else "remove", "entry": thing}
    if kind in text and rng.random() < 0.5:
        call["list"] = kind
    return text, call


def _duration(rng: random.Random) -> tuple[str, str]:
    special = (("half an hour", "30 minutes"), ("a quarter of an hour", "15 minutes"), ("an hour", "1 hour"),
               ("an hour and a half", "90 minutes"), ("a minute", "1 minute"), ("half a minute", "30 seconds"),
               ("a day", "1 day"))  # fmt: skip
    if rng.random() < 0.15:
        return rng.choice(special)
    shown, value = _number(rng, 90)
    unit = rng.choice(UNITS)
    plural = "" if value == "1" else "s"
    short = {"second": "sec", "minute": "min", "hour": "hr", "day": "day"}[unit]
    spoken = (unit if rng.random() < 0.8 else short) + (plural if rng.random() < 0.9 else "")
    return f"{shown} {spoken}", f"{value} {unit}{plural}"


def _remind(rng: random.Random, words: list[str]) -> tuple[str, dict]:
    thing = phrase(rng, words, 3)
    if rng.random() < 0.3:
        text = rng.choice(FORGET)
        call = {"tool": "forget", "about": thing} if "{x}" in text else {"tool": "forget"}
        return text.format(x=thing), call
    text, (shown, value) = rng.choice(REMIND), _duration(rng)
    call = {"tool": "remind", "in": value} | ({"about": thing} if "{x}" in text else {})
    return text.format(t=shown, x=rng.choice(("", "the ")) + thing), call


def _lookup(rng: random.Random, words: list[str]) -> tuple[str, dict]:
    topic, place, day = rng.choice(TOPICS), phrase(rng, words, 2), rng.choice(DAYS)
    text = rng.choice(LOOKUP)
    call = {"tool": "lookup", "topic": topic}
    if "{p}" in text:
        call["place"] = place
    if "{day}" in text:
        call["day"] = day
    shown = ("on " if day.endswith("day") and day != "today" and rng.random() < 0.6 else "") + day
    return text.format(o=topic, p=place, day=shown), call


def _open(rng: random.Random, words: list[str]) -> tuple[str, dict]:
    title = phrase(rng, words, 4)
    return rng.choice(OPEN).format(x=title), {"tool": "open", "title": title}


def _idle(rng: random.Random, words: list[str]) -> tuple[str, dict]:
    text = rng.choice(IDLE).format(d=rng.choice(DEVICES), x=phrase(rng, words, 3), day=rng.choice(DAYS))
    return text, {"tool": None}
