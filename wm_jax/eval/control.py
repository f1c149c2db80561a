"""Does the picture obey the keys? What a class of controls is, and how its accuracy is counted.

The keys of a world form heads: two opposite keys (left and right, forward and back) are one head of three classes, any
other key is a head of two. An inverse-dynamics model (`inverse.py`) looks at the frames around frame t and gives, for each
head, how likely each class led to it, as if all classes were equally frequent.

Many presses cannot be seen: jump in the air, right against a wall, one frame of left within a run to the right. So a frame
counts for a head where the REAL recording shows the class: the model is at least 90 % sure of some class there. The
accuracy of a head is the mean over its classes of the share recognised among these frames (balanced: saying always the
most frequent class gains nothing). The accuracy is the mean over heads; a head that shows in less than 5 % of the
frames, or of which only one class ever shows (not down, in CoinRun), is left out and named. Dreamed frames are scored at
the very same places against the same keys, so that the ratio dreamed / real is the share of visible control that the
world kept. The same over all frames, sure or not, stands beside it.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from wm_jax.types import ControlSpace

SURE = 0.9
LEAST_SHOWN = 0.05
_FEWEST = 10
_OPPOSITES = (("left", "right"), ("forward", "back"), ("up", "down"))


@dataclasses.dataclass(frozen=True)
class Head:
    """One question about the controls.

    Attributes:
      name: For tables: "left/right", "jump".
      keys: The columns of the keys; class i > 0 means that key i-1 is held, class 0 that none is, or that opposite keys
        cancel.
    """

    name: str
    keys: tuple[int, ...]

    @property
    def classes(self) -> int:
        return len(self.keys) + 1


@dataclasses.dataclass(frozen=True)
class HeadScore:
    """How well one head is recognised.

    Attributes:
      name: The head's.
      shown: Share of the frames in which the real recording shows the class.
      real: Balanced accuracy on these real frames.
      dreamed: The same places of the dream.
      real_all: Balanced accuracy on all frames.
      dreamed_all: The same of the dream.
      chance: What guessing gives.
    """

    name: str
    shown: float
    real: float
    dreamed: float
    real_all: float
    dreamed_all: float
    chance: float

    @property
    def is_counted(self) -> bool:
        return self.shown >= LEAST_SHOWN and not np.isnan(self.real)


def heads_of(controls: ControlSpace) -> tuple[Head, ...]:
    """The heads of a control space, in the order of its keys."""
    labels = [key.label for key in controls.keys]
    heads, taken = [], set()
    for i in range(len(labels)):
        if i in taken:
            continue
        partner = _opposite(i, labels)
        keys = (i,) if partner is None else (i, partner)
        taken |= set(keys)
        heads.append(Head("/".join(labels[key] for key in keys), keys))
    return tuple(heads)


def _opposite(i: int, labels: list[str]) -> int | None:
    for one, other in [*_OPPOSITES, *(pair[::-1] for pair in _OPPOSITES)]:
        wanted = labels[i].replace(one, other)
        if wanted != labels[i] and wanted in labels:
            return labels.index(wanted)
    return None


def classes_of(heads: tuple[Head, ...], keys: Bool[np.ndarray, "... keys"]) -> Int[np.ndarray, "... heads"]:
    """The true class of each head."""
    answers = []
    for head in heads:
        held = keys[..., list(head.keys)]
        answers.append(np.where(held.sum(-1) == 1, held.argmax(-1) + 1, 0))
    return np.stack(answers, axis=-1)


def score(
    heads: tuple[Head, ...],
    keys: Bool[np.ndarray, "n keys"],
    real: list[Float[np.ndarray, "n classes"]],
    dreamed: list[Float[np.ndarray, "n classes"]],
) -> tuple[HeadScore, ...]:
    """Scores each head from the probabilities that the inverse-dynamics model gave on real and on dreamed frames."""
    truth = classes_of(heads, keys)
    rows = []
    for i, head in enumerate(heads):
        shown = real[i].max(-1) >= SURE
        row = [_balanced(guess[i], truth[:, i], chosen, head.classes)
               for chosen in (shown, np.ones_like(shown)) for guess in (real, dreamed)]  # fmt: skip
        rows.append(HeadScore(head.name, float(shown.mean()), *row, chance=1 / head.classes))
    return tuple(rows)


def mean_over_heads(scores: tuple[HeadScore, ...], field: str) -> float:
    """The mean of one field over the heads that count; not a number where none does."""
    values = [getattr(row, field) for row in scores if row.is_counted]
    return float(np.mean(values)) if values else float("nan")


def _balanced(likely: np.ndarray, truth: np.ndarray, chosen: np.ndarray, classes: int) -> float:
    """Mean over classes of the share recognised; a class of fewer than 10 frames is left out, and one class is no test."""
    guess = likely.argmax(-1)
    of_class = [chosen & (truth == label) for label in range(classes)]
    shares = [float((guess[rows] == label).mean()) for label, rows in enumerate(of_class) if rows.sum() >= _FEWEST]
    return float(np.mean(shares)) if len(shares) > 1 else float("nan")
