"""Writes the home-assistant data set: what people say at home, and the tool call it asks for.

    python generate.py --out DIR        train.jsonl (5,000), validation.jsonl (200), test.jsonl (300)

An example is a phrase (`phrases/*.toml`) whose slots are filled with values (`values.toml`), spoken in
somebody's manner (`manner.toml`): wrappers, casual forms, a typo now and then, never inside a value. The
answer is compact JSON with fixed key order, open values copied as said, closed ones in one normal form.

Phrases and open values lie in two lists, `train` and `held_out`. Training sees only the first. Every third
entry of `held_out` belongs to the held-out half of the validation split, the rest to the test split, so that
the three never share a phrase or an open value; `find_leaks` proves it on every run. A held-out phrase puts
known words together in a new way: `find_strangers` refuses one whose words training does not teach.

The files are the same bytes for a seed on every Python >= 3.11: of `random` only `Random.random` is used,
the Mersenne Twister's own output, which Python promises to keep.
"""

import argparse
import json
import random
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

HERE = Path(__file__).resolve().parent
PHRASES = HERE / "phrases"
SEED = 42
Key = TypeVar("Key")

# Examples: (from training phrases and values, from held-out ones). The test comes first: it does not change with
# the number of training examples, and no utterance of it is in another split.
SIZES = {"test": (0, 300), "validation": (100, 100), "train": (5000, 0)}

# How often a phrase is said anew, in another manner, while what comes out is an utterance there is already.
TRIES = {"train": 20, "validation": 1, "test": 1}

# Share of each tool; "" is the call of no tool.
SHARES = {
    "set_light": 0.17,
    "set_thermostat": 0.10,
    "set_timer": 0.12,
    "cancel_timer": 0.05,
    "play_media": 0.12,
    "media_control": 0.08,
    "add_to_list": 0.10,
    "remove_from_list": 0.05,
    "get_weather": 0.09,
    "": 0.12,
}

# Arguments of each tool in the order in which the answer gives them.
ARGUMENTS = {
    "set_light": ("room", "state", "brightness", "color"),
    "set_thermostat": ("celsius", "change"),
    "set_timer": ("duration", "label"),
    "cancel_timer": ("label",),
    "play_media": ("query",),
    "media_control": ("action",),
    "add_to_list": ("item",),
    "remove_from_list": ("item",),
    "get_weather": ("place", "day"),
    "": (),
}

# Where, when and for what: arguments that leave open what a phrase asks for.
DETAILS = {"room", "label", "place", "day"}

# Words that carry no meaning of their own; "on", "up", "no", "what" and their like do.
FUNCTION_WORDS = set(
    "a an the this that my your i me we us you it i'm i'd it's we're there's to in of for at with and "
    "is are be do does did will would can have has".split()
)
LEAST_TAUGHT = 3  # training phrases of the same meaning that every other word of a held-out phrase occurs in

OPENER_RATE, FILLER_RATE, ENDING_RATE = 0.25, 0.12, 0.10
CASUAL_RATE, DROPPED_ARTICLE_RATE, TYPO_RATE = 0.30, 0.04, 0.05


@dataclass(frozen=True)
class Phrase:
    """One way of saying something, with `{slots}`, or a form with its `texts`, one of which is said at a time."""

    id: str
    tool: str
    texts: tuple[str, ...]
    fixed: dict[str, str]  # arguments that the words imply
    is_request: bool  # "turn on ...": may follow "can you"


@dataclass
class Deck:
    """Deals its cards in shuffled rounds, so that rare ones get used as often as the rest; `first` makes a round
    before them."""

    cards: Sequence[Any]
    rng: random.Random
    first: Sequence[Any] = ()
    _round: list[Any] = field(default_factory=list)

    def deal(self) -> Any:
        if not self._round:
            self._round, self.first = shuffled(self.first or self.cards, self.rng), ()
        return self._round.pop()


def shuffled(items: Sequence[Any], rng: random.Random) -> list[Any]:
    """Fisher and Yates on `Random.random` alone: `Random.shuffle` may change between versions of Python."""
    cards = list(items)
    for i in range(len(cards) - 1, 0, -1):
        j = int(rng.random() * (i + 1))
        cards[i], cards[j] = cards[j], cards[i]
    return cards


def share_of(entries: Sequence[Any], part: str) -> list[Any]:
    """The entries of a `held_out` list that belong to "validation" (every third) or "test" (the rest)."""
    return [entry for i, entry in enumerate(entries) if (i % 3 == 1) == (part == "validation")]


def read_phrases(part: str) -> dict[str, list[tuple[float, list[Phrase]]]]:
    """Phrases of "train", "validation" or "test": tool -> [(weight, phrases of one group)]."""
    groups: dict[str, list[tuple[float, list[Phrase]]]] = {}
    contents = {path.stem: tomllib.loads(path.read_text("utf-8"))["group"] for path in sorted(PHRASES.glob("*.toml"))}
    groups_of_all = [group for content in contents.values() for group in content]
    taken = {proper(text) for group in groups_of_all for name in ("train", "held_out") for text in listed(group, name)}
    for stem, content in contents.items():
        for group in content:
            names = ("train", "train_forms") if part == "train" else ("held_out",)
            phrases = [
                Phrase(f"{stem}.{group['id']}.{name}.{i}", group["tool"], texts, group.get("fixed", {}), ask)
                for name in names
                for i, (text, ask) in enumerate(listed(group, name).items())
                if (texts := expanded(text, taken) if name == "train_forms" else (text,))
            ]
            if part != "train":
                phrases = share_of(phrases, part)
            if phrases:
                groups.setdefault(group["tool"], []).append((group.get("weight", 1.0), phrases))
    return groups


def listed(group: dict[str, Any], name: str) -> dict[str, bool]:
    """The texts of the list `name` of a group and of its plain twin; whether they are requests ("turn on ...")."""
    return dict.fromkeys(group.get(name, []), True) | dict.fromkeys(group.get(f"{name}_plain", []), False)


def expanded(form: str, taken: set[str]) -> tuple[str, ...]:
    """Every text of a form like `[turn|switch] {state} the [light|lights]`, innermost brackets first, in order.

    Those in `taken`, in their proper form, are left out: phrases that are held out, or listed on their own.
    """
    forms, texts = [form], []
    while forms:
        text = forms.pop(0)
        if found := re.search(r"\[([^\[\]]*)\]", text):
            forms += [text[: found.start()] + choice + text[found.end() :] for choice in found[1].split("|")]
        else:
            texts.append(" ".join(text.split()))
    return tuple(text for text in dict.fromkeys(texts) if proper(text) not in taken)


def proper(text: str) -> str:
    """A text with every casual form ("gonna") turned back into the proper one ("going to")."""
    for long, short in manner()["casual"].items():
        text = re.sub(rf"\b{re.escape(short)}\b", long, text)
    return text


class Values:
    """Deals (what is said, argument, its value) for a slot. `part`: "train", "validation" or "test"."""

    def __init__(self, part: str, rng: random.Random):
        self._rng = rng
        self._slots: dict[str, list[tuple[float, str, dict[str, Any], Deck | None]]] = {}
        for slot, families in tomllib.loads((HERE / "values.toml").read_text("utf-8")).items():
            for family in families:
                deck = Deck(cards_of(family, part), rng) if "slot" not in family else None
                entry = (family.get("share", 1.0), family.get("argument", slot), family, deck)
                self._slots.setdefault(slot, []).append(entry)

    def deal(self, slot: str) -> tuple[str, str, str]:
        families = self._slots[slot]
        _, argument, family, deck = families[weighted(self._rng, [share for share, *_ in families])]
        if deck is None:
            return self.deal(family["slot"])
        card = deck.deal()
        if isinstance(card, tuple):
            said, value = card
        else:
            said = str(pick(self._rng, family.get("forms", ["{n}"]))).format(n=card)
            value = family.get("value", "{n}").format(n=card)
        return said, argument, value


def cards_of(family: dict[str, Any], part: str) -> list[Any]:
    """The values of a family that a part may use: open ones as they are, closed ones as (said, value)."""
    if "closed" in family:
        return list(family["closed"].items())
    return list(family["train"]) if part == "train" else share_of(family["held_out"], part)


@cache
def manner() -> dict[str, Any]:
    """What `manner.toml` says."""
    return tomllib.loads((HERE / "manner.toml").read_text("utf-8"))


def pick(rng: random.Random, items: Sequence[Any]) -> Any:
    return items[int(rng.random() * len(items))]


def weighted(rng: random.Random, weights: Sequence[float]) -> int:
    """An index, drawn in proportion to the weights."""
    left = rng.random() * sum(weights)
    for i, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return i
    return len(weights) - 1


class Speaker:
    """Says a phrase the way people talk. `part` other than "train" also uses the held-out wrappers."""

    def __init__(self, part: str, rng: random.Random):
        self._rng = rng
        self._manner = manner()
        self._lists = ["train"] if part == "train" else ["train", "held_out"]

    def choose(self, texts: Sequence[str]) -> str:
        """One of a phrase's texts; a phrase of one text draws nothing, so that other draws stay what they were."""
        return texts[0] if len(texts) == 1 else str(pick(self._rng, texts))

    def loosen(self, phrase: str) -> str:
        """Casual forms, a lost article, a typo: in the phrase's own words only, the slots stay intact."""
        for proper, casual in self._manner["casual"].items():
            if re.search(rf"\b{proper}\b", phrase) and self._chance(CASUAL_RATE):
                phrase = re.sub(rf"\b{proper}\b", casual, phrase)
        if self._chance(DROPPED_ARTICLE_RATE) and len(phrase.split()) > 3:
            phrase = re.sub(r"\b(the|a) ", "", phrase, count=1)
        words = phrase.split(" ")
        long_words = [i for i, word in enumerate(words) if word.isalpha() and len(word) >= 4]
        if long_words and self._chance(TYPO_RATE):
            i = pick(self._rng, long_words)
            words[i] = self._mistype(words[i])
        return " ".join(words)

    def wrap(self, text: str, is_request: bool) -> str:
        """Openers, fillers and endings around a finished utterance."""
        opened = is_request and self._chance(OPENER_RATE)
        if opened:
            text = f"{self._one('opener')} {text}"
        if self._chance(FILLER_RATE):
            text = f"{self._one('filler')} {text}"
        if not opened and self._chance(ENDING_RATE):
            text = f"{text} {self._one('ending')}"
        return text

    def _mistype(self, word: str) -> str:
        """Two letters swapped, one lost, or one doubled; never the first, which people get right."""
        at = 1 + int(self._rng.random() * (len(word) - 2))
        return pick(
            self._rng,
            [
                word[:at] + word[at + 1] + word[at] + word[at + 2 :],
                word[:at] + word[at + 1 :],
                word[:at] + word[at] + word[at:],
            ],
        )

    def _one(self, kind: str) -> str:
        return pick(self._rng, self._manner[kind][pick(self._rng, self._lists)])

    def _chance(self, rate: float) -> bool:
        return self._rng.random() < rate


def examples(part: str, count: int, rng: random.Random, seen: set[str]) -> Iterator[dict[str, Any]]:
    """`count` examples whose utterances are not yet in `seen`, the tools in their shares."""
    phrases, values, speaker = read_phrases(part), Values(part, rng), Speaker(part, rng)
    for tool, wanted in apportion(SHARES, count).items():
        weights = {i: weight for i, (weight, _) in enumerate(phrases[tool])}
        for i, due in apportion(weights, wanted).items():
            some, made = phrases[tool][i][1], 0
            deck = Deck([phrase for phrase in some for _ in range(cards(phrase))], rng, first=some)
            while made < due:
                phrase = deck.deal()
                for _ in range(TRIES[part]):
                    example = speak(phrase, values, speaker)
                    utterance = example["messages"][0]["content"]
                    if utterance not in seen:
                        seen.add(utterance)
                        made += 1
                        yield example
                        break


def cards(phrase: Phrase) -> int:
    """How often a phrase is dealt in a round: a form once for every fourth of its texts, up to twelve times."""
    return max(1, min(12, len(phrase.texts) // 4))


def apportion(shares: dict[Key, float], count: int) -> dict[Key, int]:
    """Whole numbers in proportion to the shares, adding up to `count` (largest remainders)."""
    exact = {key: share * count / sum(shares.values()) for key, share in shares.items()}
    whole = {key: int(value) for key, value in exact.items()}
    by_remainder = sorted(exact, key=lambda key: whole[key] - exact[key])
    for key in by_remainder[: count - sum(whole.values())]:
        whole[key] += 1
    return whole


def speak(phrase: Phrase, values: Values, speaker: Speaker) -> dict[str, Any]:
    """One example in chat form, with its intent and the phrase it came from beside the messages."""
    arguments = dict(phrase.fixed)
    said: dict[str, str] = {}
    text = speaker.choose(phrase.texts)
    for slot in re.findall(r"{(\w+)}", text):
        said[slot], argument, value = values.deal(slot)
        arguments[argument] = value
    utterance = speaker.wrap(speaker.loosen(text).format(**said), phrase.is_request)
    call = {"tool": phrase.tool or None}
    call |= {name: arguments[name] for name in ARGUMENTS[phrase.tool] if name in arguments}
    answer = json.dumps(call, separators=(",", ":"))
    return {
        "messages": [{"role": "user", "content": utterance}, {"role": "assistant", "content": answer}],
        "intent": phrase.tool or "out_of_scope",
        "phrase": phrase.id,
    }


def find_leaks() -> list[str]:
    """Held-out phrases and open values that another split could meet; empty if the split is honest.

    Words count as met when they occur in a row in any training phrase, training value or closed form. Numbers
    are compared argument by argument: 13 minutes may be new where 13 degrees is not.
    """
    texts = {
        text for groups in read_phrases("train").values() for _, group in groups for p in group for text in p.texts
    }
    held_out = [
        text
        for part in ("validation", "test")
        for groups in read_phrases(part).values()
        for _, group in groups
        for p in group
        for text in p.texts
    ]
    leaks = [f"phrase {text!r} is in train" for text in held_out if text in texts]
    parts = {part: answers(part) for part in ("train", "validation", "test")}
    closed = answers("closed")
    said = [re.sub(r"{\w+}", "|", text) for text in texts] + [value for _, value in parts["train"] | closed]
    known = "".join(f"| {text} |" for text in said)
    for part in ("validation", "test"):
        met = parts["train"] | closed | (parts["validation"] if part == "test" else set())
        for argument, value in sorted(parts[part]):
            if (argument, value) in met or (not value[0].isdigit() and f" {value} " in known):
                leaks.append(f"{part} value {value!r} of {argument} is met before")
    return leaks


def find_strangers() -> list[str]:
    """Held-out phrases that training does not prepare for; empty if the split is fair.

    Every word but the function words has to occur in `LEAST_TAUGHT` training phrases of the same meaning, and
    no training phrase of another meaning may be closer in words (Dice over words and pairs of words).
    """
    taught: dict[Any, list[set[Any]]] = {}
    for meaning, words in meanings("train"):
        taught.setdefault(meaning, []).append({*words, *pairwise(words)})
    strangers = []
    for meaning, words in [*meanings("validation"), *meanings("test")]:
        said = " ".join(words)
        for word in sorted({word for word in words if word[0] != "{"} - FUNCTION_WORDS):
            count = sum(word in known for known in taught[meaning])
            if count < LEAST_TAUGHT:
                strangers.append(f"phrase {said!r}: {word!r} is in {count} training phrases of {meaning}")
        parts = {*words, *pairwise(words)}
        nearest = {key: max(likeness(parts, known) for known in taught[key]) for key in taught}
        closest = max(nearest, key=lambda key: nearest[key])
        if nearest[closest] > nearest[meaning]:
            strangers.append(f"phrase {said!r} is closer to {closest} than to {meaning}")
    return strangers


def meanings(part: str) -> Iterator[tuple[Any, list[str]]]:
    """What each phrase of a part asks for (tool, fixed arguments, other arguments; no details), its words."""
    slots = tomllib.loads((HERE / "values.toml").read_text("utf-8"))
    argument = {slot: families[0].get("argument", slot) for slot, families in slots.items()}
    phrases = [p for groups in read_phrases(part).values() for _, group in groups for p in group]
    for phrase, said in [(p, text) for p in phrases for text in p.texts]:
        for state in ["on", "off"] if "{state}" in said else [""]:
            fixed = {k: v for k, v in phrase.fixed.items() if k not in DETAILS} | ({"state": state} if state else {})
            text = said.replace("{state}", state)
            named = {argument[slot] for slot in re.findall(r"{(\w+)}", text)} - DETAILS
            asked = sorted(named & {*ARGUMENTS[phrase.tool]})
            yield (phrase.tool, *fixed.items(), *asked), text.split()


def likeness(one: set[Any], other: set[Any]) -> float:
    """Dice coefficient of two sets: of the words and pairs of neighbours of two phrases."""
    return 2 * len(one & other) / (len(one) + len(other))


def answers(part: str) -> set[tuple[str, str]]:
    """(argument, value) of all open families in a part; of the closed ones for "closed"."""
    found = set()
    for slot, families in tomllib.loads((HERE / "values.toml").read_text("utf-8")).items():
        for family in families:
            if "slot" in family or ("closed" in family) != (part == "closed"):
                continue
            argument, form = family.get("argument", slot), family.get("value", "{n}")
            for card in cards_of(family, part):
                found.add((argument, card[1] if isinstance(card, tuple) else form.format(n=card)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the three files")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    if leaks := find_leaks():
        raise SystemExit("\n".join(["held-out material that training would meet:", *leaks]))
    if strangers := find_strangers():
        raise SystemExit("\n".join(["held-out phrases that training does not prepare for:", *strangers]))
    args.out.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for split, (familiar, held_out) in SIZES.items():
        rng = random.Random(args.seed * 1000 + ("train", "validation", "test").index(split))
        made = [*examples("train", familiar, rng, seen)]
        made += [*examples("test" if split == "test" else "validation", held_out, rng, seen)]
        lines = [json.dumps(example, ensure_ascii=False) for example in shuffled(made, rng)]
        (args.out / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
