"""The baseline that needs no language model: TF-IDF of the words and letters of the prompt."""

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_union
from sklearn.svm import LinearSVC

from edgeft.bench.examples import Example

MAX_LABELS = 1000  # a linear model per answer: more would take longer than the fine-tuning
LINEAR = "TF-IDF + LinearSVC"
NEAREST = "TF-IDF + nearest prompt"
FEATURES = "words 1-2 and letters 3-5 of the prompt"


def classical_answers(train: Sequence[Example], test: Sequence[Example], seed: int) -> tuple[str, list[str]]:
    """The method's name and its answers to `test`.

    When at most half of the training answers are distinct they are taken for labels and a linear classifier
    picks one; otherwise the answer of the most similar training prompt (cosine) is given.
    """
    answers = [example.answer for example in train]
    features = make_union(
        TfidfVectorizer(analyzer="word", ngram_range=(1, 2), token_pattern=r"(?u)\S+", sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True),
    )
    known = features.fit_transform([_text(example) for example in train])
    asked = features.transform([_text(example) for example in test])
    labels = len(set(answers))
    if labels == 1:
        return "the only answer", answers[:1] * len(test)
    if labels <= min(len(answers) / 2, MAX_LABELS):
        classifier = LinearSVC(random_state=seed).fit(known, answers)
        return LINEAR, [str(answer) for answer in classifier.predict(asked)]
    nearest = np.concatenate([_nearest(asked[at : at + 256], known) for at in range(0, len(test), 256)])
    return NEAREST, [answers[index] for index in nearest]


def _nearest(asked: object, known: object) -> np.ndarray:
    """For each row of `asked` the most similar row of `known`; every row is a pair of unit vectors."""
    similarity = asked @ known.T  # type: ignore[operator, attr-defined]
    return np.asarray(similarity.argmax(axis=1)).ravel()


def _text(example: Example) -> str:
    """What the user said; a system message is the same for all and says nothing."""
    said = [str(m.get("content") or "") for m in example.prompt if m["role"] == "user"]
    return "\n".join(said).casefold()
