"""Whether a classifier's right answers are more than guesses, and how many it takes to tell."""

from __future__ import annotations

HELD_OUT, MOST_HELD_OUT = 0.1, 10_000  # images that it is tested on: their share, and number
DOUBT = 0.01  # probability of a wrong verdict


def held_out(images: int, share: float = HELD_OUT) -> int:
    """How many of a classifier's images it is tested on, and not trained."""
    return min(round(share * images), MOST_HELD_OUT)


def better_than_chance(right: int, answers: int, chance: float) -> bool | None:
    """Whether `right` of `answers` are more than guesses, each right with probability `chance`.

    True where guessing would hardly do as well. False where even half-way between guessing and
    knowing would hardly do as badly. None where neither can be said: too few answers to tell.
    """
    from scipy.stats import binom

    if binom.sf(right - 1, answers, chance) < DOUBT:
        return True
    return False if binom.cdf(right, answers, (1 + chance) / 2) < DOUBT else None


def answers_needed(chance: float) -> int | None:
    """The least number of answers that always tell; None if it is above `MOST_HELD_OUT`."""
    import numpy as np
    from scipy.stats import binom

    answers = np.arange(1, MOST_HELD_OUT + 1)
    guessed = binom.isf(DOUBT, answers, chance)  # guessing hardly has more right
    undecided = binom.cdf(guessed, answers, (1 + chance) / 2) >= DOUBT
    last = int(answers[undecided].max(initial=0))
    return last + 1 if last < MOST_HELD_OUT else None


def images_needed(chance: float, each: int) -> int | None:
    """The least number of held-out images that always tell, with `each` answers of every one."""
    needed = answers_needed(chance)
    return needed and -(-needed // each)


def never_told(answers: int, chance: float) -> bool:
    """Whether so few answers could be guesses even if all were right."""
    return chance**answers >= DOUBT


def more_held_out(needed: int | None) -> str:
    """The way out where a classifier is tested on fewer images than the `needed` ones."""
    enough = "more images"
    if needed is not None:
        enough = (
            f"{needed / HELD_OUT:,.0f} images or more, {needed:,} of them held out for the test"
        )
    return f"use {enough}, or another features.extractor"
