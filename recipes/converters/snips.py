"""SNIPS natural language understanding (7 intents, CC0) as chat files: `python snips.py --out DIR`.

The official test split is the `validate_*.json` files, 100 questions an intent; training reads the
`train_*_full.json` files. Answers are one short word, which a small vocabulary spells in few tokens.
"""

from pathlib import Path

from common import Example, data_folder, output_folder, read_json, tidy, write_splits

ANSWERS = {
    "AddToPlaylist": "add",
    "BookRestaurant": "book",
    "GetWeather": "weather",
    "PlayMusic": "play",
    "RateBook": "rate",
    "SearchCreativeWork": "find",
    "SearchScreeningEvent": "show",
}
VALIDATION_SHARE = 0.05


def main() -> None:
    out, folder = output_folder(__doc__), data_folder("snips_nlu")
    train = [example for intent in ANSWERS for example in _read(folder / intent / f"train_{intent}_full.json")]
    test = [example for intent in ANSWERS for example in _read(folder / intent / f"validate_{intent}.json")]
    write_splits(out, train, test, VALIDATION_SHARE)


def _read(path: Path) -> list[Example]:
    ((intent, rows),) = read_json(path).items()
    questions = ["".join(part["text"] for part in row["data"]) for row in rows]
    return [Example(tidy(question), ANSWERS[intent], intent) for question in questions]


if __name__ == "__main__":
    main()
